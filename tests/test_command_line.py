"""A mistake on the command line costs one message: it names the option or path, lists the choices, and writes nothing.

Also: the help, working from any directory, and sweeps, of which one failing point does not take the others along.
Most commands run inside this process (`run_here`), since starting a new one takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from commands import ENVIRONMENT, RUN, SMALL, run, status
from in_process import logging_left_as_found
from semaim.checkpoints import store
from semaim.config.compose import CONF
from semaim.models.aim import AIM
from semaim.run import command_line

MODELS = ("aim_base", "aim_huge", "aim_large", "aim_small", "aim_tiny")
EXPERIMENTS = tuple(sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))

# What is typed, and what the message must contain.
MISTAKES = {
    "group choice": ("model=aim_huhe", ("aim_huhe", *MODELS)),
    "group choice of tracking": ("tracking=mlfow", ("mlfow", "mlflow", "none")),
    "group name": ("modle=aim_tiny", ("modle", "did you mean model?", "optimizer", "permutation", "trainer")),
    "option": ("trainer.epoch=3", ("trainer.epoch", "trainer.epochs", "batch_size", "max_steps", "precision")),
    "option of a group without options": ("permutation.foo=1", ("permutation.foo",)),
    "option at the top": ("sed=1", ("sed", "did you mean seed?", "runs_dir")),
    "added option": ("+foo=1", ("+foo", "checkpoint", "run_name", "trainer")),
    "added option in a group": ("+trainer.epoch=3", ("+trainer.epoch", "trainer.epochs", "max_steps")),
    "experiment": ("+experiment=nope", ("experiment/nope", *EXPERIMENTS)),
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
    "no neighbours": ("task=knn checkpoint=random task.ks=[0]", ("ks=[0]", "positive")),
    "kind of feature": ("task=linprobe checkpoint=random task.features=[avg]", ("task.features=['avg']", "cls, mean")),
    "rates to choose from": ("task=linprobe checkpoint=random task.base_lrs=[0.1,0]", ("task.base_lrs", "positive")),
    "share for the choice": (
        "task=linprobe checkpoint=random task.base_lrs=[0.1,1] task.holdout=1.5",
        ("1.5", "between 0 and 1"),
    ),
    "clipped heads": ("task=linprobe checkpoint=random trainer.clip_grad=1", ("trainer.clip_grad", "null")),
    "average of heads": ("task=fewshot checkpoint=random trainer.ema=true", ("trainer.ema=true", "linear heads")),
    "other heads": ("task=knn checkpoint=other.pt task.source.num_heads=4", ("other.pt has 3 attention heads, not 4",)),
    "one image to normalise over": (
        "task=linprobe checkpoint=random trainer.batch_size=1",
        ("trainer.batch_size", "two images"),
    ),
    "pool": ("task=finetune checkpoint=random task.pool=max", ("task.pool=max", "cls or mean")),
    "no trained head": ("task=finetune checkpoint=other.pt task.eval_only=true", ("trained head", "task.eval_only")),
    "no head at all": ("task=finetune checkpoint=random task.eval_only=true", ("trained head", "checkpoint=random")),
    "odd mixup": (
        "task=finetune checkpoint=random task.mixup=0.8 trainer.batch_size=63",
        ("trainer.batch_size", "63", "task.mixup=0.0"),
    ),
    "negative mixup": ("task=finetune checkpoint=random task.mixup=-1", ("task.mixup=-1", "negative")),
    "few images": ("task=fewshot checkpoint=random task.shots=[1,500]", ("500 images per class", "task.shots")),
    "no shots": ("task=fewshot checkpoint=random task.shots=[]", ("task.shots=[]",)),
    "feature format": ("task=features checkpoint=random task.format=csv", ("task.format=csv", "npz or safetensors")),
    "timm model": ("task=knn checkpoint=timm:vit_nothing", ("checkpoint=timm:vit_nothing", "timm.list_models")),
    "MLflow run without store": ("task=knn checkpoint=mlflow:abc", ("sqlite:///mlflow.db", "no MLflow store")),
    "MLflow run without tracking": (
        "task=knn checkpoint=mlflow:abc tracking=none",
        ("checkpoint=mlflow:abc", "tracking=mlflow"),
    ),
    "held out twice": ("data.val_fraction=0.1", ("data.val_fraction=0.1", "held-out images of their own")),
    "what follows": ("then=[knm]", ("then=['knm']", "knn, linprobe")),
    "what follows an evaluation": ("task=knn checkpoint=random then=[knn]", ("then=['knn']", "task=pretrain")),
    "precision": ("trainer.precision=float16", ("trainer.precision=float16", "auto, bf16, fp16 or float32")),
    "negative seed": ("seed=-1", ("seed=-1", "not be negative")),
    "device": ("device=gpu", ("device=gpu", "auto, cpu or cuda")),
    "no GPU": ("device=cuda", ("device=cuda", "device=cpu")),
    "head": ("model.head=tree", ("model.head=tree", "mlp or linear")),
    "even blur": ("target.blur_kernel_size=4", ("target.blur_kernel_size=4", "odd")),
    "no steps": ("trainer.max_steps=0", ("trainer.max_steps=0", "positive")),
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
    "removed group": ("~model", ("~model", "nothing can be left out")),
    "removed option": ("~trainer.epochs", ("~trainer.epochs", "nothing can be left out")),
    "negative workers": ("data.num_workers=-1", ("data.num_workers=-1", "negative")),
    "one number for two": ("trainer.ema_decay=0.9", ("trainer.ema_decay=0.9", "a list")),
    "share held out": ("data.source.val_fraction=2.0", ("data.source.val_fraction=2.0", "between 0 and 1")),
    "null where there must be a number": ("trainer.epochs=null", ("options of trainer do not fit",)),
}


class Malice:
    """Its unpickling makes a folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("pwned",)


def run_here(folder: Path, *overrides: str) -> int:
    """Run a command inside this process; its exit code. Logging is left as it was found."""
    GlobalHydra.instance().clear()
    try:
        with (
            logging_left_as_found(),
            contextlib.chdir(folder),
            mock.patch.object(sys, "argv", ["run.py", *overrides]),
        ):
            return command_line()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        GlobalHydra.instance().clear()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A working directory with everything that the mistakes name; afterwards nothing more may be in it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello\n")
    torch.save({"weight": torch.ones(2)}, tmp_path / "foreign.pt")
    torch.save({"model": Malice()}, tmp_path / "evil.pt")
    model = AIM(48, 32, 4, embed_dim=48, depth=2, num_heads=3, query_depth=1)
    saved = store.save(tmp_path, 1, {"architecture": model.architecture, "model": model.state_dict()})
    saved.rename(tmp_path / "other.pt")
    before = set(tmp_path.rglob("*"))
    yield tmp_path
    assert set(tmp_path.rglob("*")) == before


def assert_one_message(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    """The screen shows one error message, with these words, and nothing else but what was being done before it."""
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"(\d\d:\d\d:\d\d [^\n]*\n)*error: ", err), err
    assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1
    assert "Traceback" not in err
    assert "Error in call to target" not in err
    assert [word for word in words if word not in err] == [], err


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_costs_one_message(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    typed, words = MISTAKES[name]
    assert run_here(place, *typed.split()) == 2
    assert_one_message(capsys, words)
    assert not (place / "pwned").exists()


def test_malice_works_where_it_is_let(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    torch.load("evil.pt", weights_only=False)
    (place / "pwned").rmdir()  # fails if the checkpoint of the test above is harmless


def test_two_processes_that_do_not_divide_the_batch_both_end(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [*RUN, *SMALL, "trainer.batch_size=15", "device=cpu"],
            cwd=tmp_path,
            env=ENVIRONMENT | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in processes] == [2, 2], said
    for text in said:
        assert text.count("error: trainer.batch_size=15 must be divisible by processes") == 1
        assert "2 x 1" in text
        assert "Traceback" not in text
    assert list(tmp_path.rglob("config.yaml")) == []


def test_help_names_every_group_on_one_page(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra", "small_data"}
    explained = {line.split()[0] for line in lines if line.startswith("  ") and line.strip()}
    assert groups <= explained
    assert len(groups) >= 10
    assert len(lines) <= 60
    assert [line for line in lines if len(line) > 120] == []
    words = set(done.stdout.replace(",", " ").split())
    choices = {path.stem for group in groups for path in (CONF / group).glob("*.yaml")}
    assert choices - words == set(), "every choice of every group is named"
    assert list(tmp_path.iterdir()) == []


def test_sweep_from_another_directory_makes_a_run_for_each_point(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "permutation=raster,stochastic", "trainer.max_steps=2", *SMALL)
    assert done.returncode == 0, done.stdout
    folders = sorted(path.parent for path in (tmp_path / "runs").glob("*/status.json"))
    assert len(folders) == 2
    for folder, order in zip(folders, ("raster", "stochastic"), strict=True):
        assert folder.name.startswith(f"pretrain_digits_aim_tiny_{order}_pixels_")
        assert status(folder)["state"] == "finished"
        assert (folder / "checkpoints" / "step_00000002.pt").is_file()
    results = [status(folder)["result"]["loss"] for folder in folders]
    assert results[0] != results[1]


def test_failing_point_of_a_sweep_spares_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ("-m", "model.query_depth=3,2", "trainer.max_steps=2", *SMALL)  # the failing one first
    assert run_here(tmp_path, *sweep) == 2
    err = capsys.readouterr().err
    assert "model.query_depth=3 must divide model.depth=4: choose one of [1, 2, 4] [model.query_depth=3]" in err
    assert not list((tmp_path / "runs").glob("*/status.json")), "nothing was started"
    assert run_here(tmp_path, *sweep, "sweep.check=false") == 1
    err = capsys.readouterr().err
    assert re.search(r"\nmodel.query_depth=3 +- +failed +model.query_depth=3 must divide model.depth=4", err)
    assert re.search(r"\nmodel.query_depth=2 +- +finished +loss [\d.]+", err)
    assert "error: 1 of 2 runs did not finish" in err
    assert "Traceback" not in err
    (finished,) = (tmp_path / "runs").glob("*/status.json")
    assert status(finished.parent)["state"] == "finished"
    assert OmegaConf.load(finished.parent / "config.yaml").model.query_depth == 2
