"""Command lines with a mistake, and the expected words of each message."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from semaim.checkpoints import store
from semaim.config.compose import CONF
from semaim.models.aim import AIM

MODELS = ("aim_base", "aim_huge", "aim_large", "aim_small", "aim_tiny")
EXPERIMENTS = tuple(sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
# The command-line overrides, and the words that the message must contain.
MISTAKES = {
    "group choice": ("model=aim_huhe", ("aim_huhe", *MODELS)),
    "group choice of tracking": ("tracking=mlfow", ("mlfow", "mlflow", "none")),
    "group name": ("modle=aim_tiny", ("modle", "did you mean model?", "optimizer", "permutation", "trainer")),
    "option": ("trainer.epoch=3", ("trainer.epoch", "trainer.epochs", "batch_size", "max_steps", "precision")),
    "option of a group without options": ("permutation.foo=1", ("permutation.foo",)),
    "option at the top": ("sed=1", ("sed", "did you mean seed?", "runs_dir")),
    "added option": ("+foo=1", ("+foo", "checkpoint", "run_name", "trainer")),
    "added option in a group": ("+trainer.epoch=3", ("+trainer.epoch", "trainer.epochs", "max_steps")),
    "experiment": ("+experiment=nope", ("experiment=nope", *EXPERIMENTS)),
    "no root": ("data=folder", ("data.root", "must be given")),
    "root is missing": ("data=folder data.root=nope", ("data.root=nope", "is not a folder")),
    "root is a file": ("data=folder data.root=text.txt", ("data.root=text.txt", "is not a folder")),
    "root is empty": ("data=folder data.root=empty", ("empty holds no image", ".jpg", "data.root")),
    "patches do not divide": ("data.patch_size=5", ("data.patch_size=5", "32x32")),
    "query blocks do not divide": ("model.query_depth=3", ("model.query_depth=3", "[1, 2, 4]")),
    "heads do not divide": ("model.num_heads=5", ("model.num_heads=5", "embed_dim=96")),
    "batch larger than the data": ("trainer.batch_size=1438", ("trainer.batch_size=1438", "1437")),
    "micro-batches do not divide": ("trainer.batch_size=64 trainer.accumulate=3", ("trainer.accumulate", "1 x 3")),
    "other architecture": ("checkpoint=other.pt", ("checkpoint=other.pt", "another architecture", "is (48,) there")),
    "text as checkpoint": ("checkpoint=text.txt", ("checkpoint=text.txt", "not a checkpoint")),
    "foreign checkpoint": ("checkpoint=foreign.pt", ("checkpoint=foreign.pt", "not a pretraining checkpoint")),
    "malicious checkpoint": ("checkpoint=evil.pt", ("checkpoint=evil.pt", "run code")),
    "checkpoint is missing": ("checkpoint=nope.pt", ("checkpoint=nope.pt", "does not exist")),
    "folder without checkpoint": ("task=knn checkpoint=empty", ("checkpoint=empty", "not a run folder")),
    "knn of nothing": ("task=knn", ("checkpoint=runs/<name>",)),
    "probe of nothing": ("task=linprobe", ("checkpoint=runs/<name>", "random")),
    "other image size": ("task=knn checkpoint=other.pt data.image_size=64", ("32x32", "64x64", "data.image_size")),
    "too many neighbours": ("task=knn checkpoint=random task.ks=[10,2000]", ("ks=[10, 2000]", "1437", "task.ks")),
    "no neighbours": ("task=knn checkpoint=random task.ks=[0]", ("task.ks=[0]", "whole numbers above 0")),
    "kind of feature": ("task=linprobe checkpoint=random task.features=[avg]", ("task.features=[avg]", "[cls,mean]")),
    "rates to choose from": (
        "task=linprobe checkpoint=random task.base_lrs=[0.1,0]",
        ("task.base_lrs=[0.1,0]", "numbers above 0"),
    ),
    "share for the choice": (
        "task=linprobe checkpoint=random task.base_lrs=[0.1,1] task.holdout=1.5",
        ("task.holdout=1.5", "above 0 and below 1"),
    ),
    "clipped heads": ("task=linprobe checkpoint=random trainer.clip_grad=1", ("trainer.clip_grad", "null")),
    "average of heads": ("task=linprobe checkpoint=random trainer.ema=true", ("trainer.ema=true", "linear heads")),
    "other heads": ("task=knn checkpoint=other.pt task.source.num_heads=4", ("other.pt has 3 attention heads, not 4",)),
    "one image to normalise over": (
        "task=linprobe checkpoint=random trainer.batch_size=1",
        ("trainer.batch_size", "two images"),
    ),
    "pool": ("task=finetune checkpoint=random task.pool=max", ("task.pool=max", "mean or cls")),
    "no trained head": ("task=finetune checkpoint=other.pt task.eval_only=true", ("trained head", "task.eval_only")),
    "no head at all": ("task=finetune checkpoint=random task.eval_only=true", ("trained head", "checkpoint=random")),
    "odd mixup": (
        "task=finetune checkpoint=random task.mixup=0.8 trainer.batch_size=63",
        ("trainer.batch_size", "63", "task.mixup=0.0"),
    ),
    "negative mixup": ("task=finetune checkpoint=random task.mixup=-1", ("task.mixup=-1", "negative")),
    "few images": ("task=fewshot checkpoint=random task.shots=[1,500]", ("500 images per class", "task.shots")),
    "C": ("task=fewshot checkpoint=random task.C=0", ("task.C=0", "a number above 0")),
    "no shots": ("task=fewshot checkpoint=random task.shots=[]", ("task.shots=[]",)),
    "feature format": ("task=features checkpoint=random task.format=csv", ("task.format=csv", "npz or safetensors")),
    "timm model": ("task=knn checkpoint=timm:vit_nothing", ("checkpoint=timm:vit_nothing", "timm.list_models")),
    "MLflow run without store": ("task=knn checkpoint=mlflow:abc", ("mlflow.db", "no MLflow store sqlite:///")),
    "MLflow run without tracking": (
        "task=knn checkpoint=mlflow:abc tracking=none",
        ("checkpoint=mlflow:abc", "tracking=mlflow"),
    ),
    "held out twice": ("data.val_fraction=0.1", ("data.val_fraction=0.1", "held-out images of their own")),
    "what follows": ("then=[knm]", ("then=['knm']", "knn, linprobe")),
    "what follows an evaluation": ("task=knn checkpoint=random then=[knn]", ("then=['knn']", "task=pretrain")),
    "precision": ("trainer.precision=float16", ("trainer.precision=float16", "auto, bf16, fp16 or float32")),
    "negative seed": ("seed=-1", ("seed=-1", "not negative")),
    "device": ("device=gpu", ("device=gpu", "auto, cpu or cuda")),
    "no GPU": ("device=cuda", ("device=cuda", "device=cpu")),
    "head": ("model.head=tree", ("model.head=tree", "mlp or linear")),
    "even blur": ("target.blur_kernel_size=4", ("target.blur_kernel_size=4", "odd")),
    "no steps": ("trainer.max_steps=0", ("trainer.max_steps=0", "whole number from 1")),
    "data not downloaded": ("data=cifar10 data.source.download=false", ("data.root=data/cifar10",)),
    "runs_dir is a file": ("runs_dir=text.txt", ("text.txt", "runs_dir")),
    "type of a rate": ("optimizer.base_lr=abc", ("optimizer.base_lr=abc",)),
    "type of the seed": ("seed=abc", ("seed=abc",)),
    "whole seed": ("seed=1.5", ("seed=1.5",)),
    "type of the batch": ("trainer.batch_size=abc", ("trainer.batch_size=abc",)),
    "whole batch": ("trainer.batch_size=64.5", ("trainer.batch_size=64.5", "whole")),
    "type of the depth": ("model.depth=two", ("model.depth=two",)),
    "nothing given": ("trainer.epochs=", ("trainer.epochs=",)),
    "size of three numbers": ("data.image_size=[32,32,32]", ("data.image_size=[32",)),
    "removed group": ("~model", ("~model", "no option can be removed")),
    "former option": ("task.online_knn.ks=[5]", ("no option task.online_knn.ks", "It is task.evaluators.knn.ks now")),
    "unknown evaluator": ("evaluators=[knn,nope]", ("no nope in evaluators", "choose from knn, linear, pictures")),
    "evaluations per epoch": (
        "task.evaluators.knn.every_epochs=0",
        ("task.evaluators.knn.every_epochs=0", "or null"),
    ),
    "removed option": ("~trainer.epochs", ("~trainer.epochs", "no option can be removed")),
    "negative workers": ("data.num_workers=-1", ("data.num_workers=-1", "whole number from 0")),
    "one number for two": ("trainer.ema_decay=0.9", ("trainer.ema_decay=0.9", "a list")),
    "share held out": ("data.source.val_fraction=2.0", ("data.source.val_fraction=2.0", "above 0 and below 1")),
    "null where there must be a number": ("trainer.epochs=null", ("trainer.epochs=null", "whole number")),
}


class Malice:
    """Unpickling an instance creates a folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("pwned",)


@contextmanager
def place_of_mistakes(folder: Path) -> Iterator[Path]:
    """A working directory with all files named by the mistakes; asserts at exit that no new file was written."""
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("hello\n")
    torch.save({"weight": torch.ones(2)}, folder / "foreign.pt")
    torch.save({"model": Malice()}, folder / "evil.pt")
    model = AIM(48, 32, 4, embed_dim=48, depth=2, num_heads=3, query_depth=1)
    saved = store.save(folder, 1, {"architecture": model.architecture, "model": model.state_dict()})
    saved.rename(folder / "other.pt")
    before = set(folder.rglob("*"))
    yield folder
    assert set(folder.rglob("*")) == before


def assert_one_message(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    """The output holds one error message with these words, and otherwise only progress output before it."""
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"(\d\d:\d\d:\d\d [^\n]*\n)*error: ", err), err
    assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1
    assert "Traceback" not in err
    assert "Error in call to target" not in err
    assert [word for word in words if word not in err] == [], err
