"""Choice of the evaluated encoder, from every kind of source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from semaim.checkpoints.encoder_source import EncoderSource, fingerprint
from semaim.checkpoints.pretrained import load_model
from semaim.core.seeding import seed_all
from semaim.errors import UserError
from semaim.models.vit import encode
from semaim.tracking.store import SQLITE
from support.encoders import KNN, MODEL, SMALLER, assert_weights, images, newest, source, weights
from support.in_process import go, run

# Our own runs and files


def test_a_run_folder_and_its_files(pretrained: Path, tmp_path: Path) -> None:
    shutil.copy(newest(pretrained), tmp_path / "alone.pt")
    for given in (pretrained, f"{pretrained}/", newest(pretrained), pretrained / "checkpoints", tmp_path / "alone.pt"):
        assert_weights(source(given).encoder(), weights(pretrained))


@torch.no_grad()
def test_the_encoder_tokens_equal_those_of_the_model(pretrained: Path) -> None:
    tokens_BND = load_model(pretrained).encode(images())
    found = encode(source(pretrained).encoder(), images())
    assert torch.allclose(found["cls"], tokens_BND[:, 0], rtol=1e-5, atol=1e-5)
    assert torch.allclose(found["mean"], tokens_BND[:, 1:].mean(1), rtol=1e-5, atol=1e-5)


def test_the_moving_average(pretrained: Path) -> None:
    averaged = weights(pretrained, "ema")
    assert_weights(source(pretrained, "task.source.ema=true").encoder(), averaged)
    assert not torch.equal(averaged["blocks.0.mlp.fc1.weight"], weights(pretrained)["blocks.0.mlp.fc1.weight"])


def test_a_model_of_ones_own_is_an_encoder(pretrained: Path, tmp_path: Path) -> None:
    state = torch.load(newest(pretrained), weights_only=True)
    state["model"] = {name: value for name, value in state["model"].items() if not name.startswith("query_blocks.")}
    state["architecture"]["model"] = "mine"
    torch.save(state, tmp_path / "mine.pt")
    assert_weights(source(tmp_path / "mine.pt").encoder(), weights(pretrained))
    with pytest.raises(UserError, match=r"is of a model of your own \(mine\), whose encoder alone"):
        load_model(tmp_path / "mine.pt")

    del state["architecture"]["depth"]
    torch.save(state, tmp_path / "mine.pt")
    with pytest.raises(UserError, match=r"mine\.pt is of a model of your own whose architecture lacks depth$"):
        source(tmp_path / "mine.pt").encoder()


def test_a_fine_tuned_run_and_its_best(tuned: Path) -> None:
    for given in (tuned, tuned / "best", newest(tuned)):
        found = source(given).encoder()
        assert_weights(found, weights(tuned))
        assert found.global_pool == "avg"
        assert torch.equal(found.fc_norm.weight, weights(tuned)["fc_norm.weight"])
    with pytest.raises(UserError, match=r"holds no moving average: its run had trainer\.ema=false"):
        source(tuned, "task.source.ema=true").encoder()


def test_the_trained_head_is_included(tuned: Path) -> None:
    found = source(tuned).trained_classifier(10)
    assert_weights(found, weights(tuned))
    with torch.no_grad():
        features_BD = encode(found, images())["mean"]
        expected_BC = features_BD @ weights(tuned)["head.weight"].T + weights(tuned)["head.bias"]
        assert torch.allclose(found(images()), expected_BC, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"was fine-tuned for 10 classes, the data have 9"):
        source(tuned).trained_classifier(9)


def test_a_checkpoint_is_required() -> None:
    with pytest.raises(Exception, match=r"needs a checkpoint: set checkpoint=runs/<name>") as raised:
        source(None)
    assert isinstance(raised.value.__cause__, UserError)


def test_paths_without_an_encoder(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint=.*nope does not exist"):
        source(tmp_path / "nope").encoder()
    with pytest.raises(UserError, match=rf"checkpoint={tmp_path} is a folder without checkpoints"):
        source(tmp_path).encoder()
    probe = ("task=linprobe", "trainer.max_steps=1", "run_name=probe")
    folder = go(tmp_path, *MODEL, *probe, f"checkpoint={pretrained}")
    with pytest.raises(UserError, match=r"checkpoint=.*/probe is of an evaluation, it holds no pretrained"):
        source(folder).encoder()
    knn = go(tmp_path, *KNN, "run_name=knn", f"checkpoint={pretrained}")
    with pytest.raises(UserError, match=r"/knn is a run of task=knn, which has no weights of its own: .*checkpoint=/"):
        source(knn).encoder()


def test_a_path_that_is_nearly_that_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("task: {}\n")
    monkeypatch.chdir(tmp_path)
    for typed in ("mine", "runs/mines"):
        with pytest.raises(UserError, match=rf"^checkpoint={typed} does not exist: did you mean runs/mine\?$"):
            source(typed).encoder()
    with pytest.raises(UserError, match="does not exist: runs/mine has no best; runs/mine alone is its newest"):
        source("runs/mine/best").encoder()


def test_a_home_folder(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pretrained.parent))
    assert_weights(source(f"~/{pretrained.name}").encoder(), weights(pretrained))


# Official checkpoints


@torch.no_grad()
def test_an_official_checkpoint_gives_the_tokens_of_its_code(official: tuple[Path, dict[str, Any]]) -> None:
    path, theirs = official
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images_BCHW = ((theirs["images_uint8_nhwc"] / 255 - mean) / std).permute(0, 3, 1, 2)
    found = source(path).encoder()
    assert found.patch_embed.img_size == (224, 224)
    tokens_BND = found.forward_features(images_BCHW)
    assert (tokens_BND - theirs["encoder_tokens"]).abs().max() <= 1e-5 * theirs["encoder_tokens"].abs().max()


@torch.no_grad()
def test_heads_of_an_official_checkpoint_can_be_set(official: tuple[Path, dict[str, Any]]) -> None:
    path, theirs = official
    usual, other = source(path).encoder(), source(path, "task.source.num_heads=1").encoder()
    assert usual.blocks[0].attn.num_heads == theirs["config"]["num_heads"] != 1
    assert other.blocks[0].attn.num_heads == 1
    assert not torch.allclose(usual.forward_features(images(1, 224)), other.forward_features(images(1, 224)))


def test_an_official_checkpoint_has_no_moving_average(official: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.pth is not from a run of semaim, so it holds no moving average"):
        source(official[0], "task.source.ema=true").encoder()


# A random encoder


def test_a_random_encoder_is_that_of_the_seed_whatever_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tasks with `checkpoint=random` use the same weights: the initial weights of pretraining."""
    found: list[list[list[float]]] = []
    made = EncoderSource._vit

    def watched(self: EncoderSource, *how: Any) -> VisionTransformer:
        vit = made(self, *how)
        found.append([p.flatten().tolist() for part in (vit.patch_embed, vit.blocks) for p in part.parameters()])
        return vit

    monkeypatch.setattr(EncoderSource, "_vit", watched)
    short = {
        "knn": ("task.features_dir=null", "task.ks=[10]"),
        "linprobe": ("trainer.max_steps=1", "task.base_lrs=[0.1,0.2]"),
        "finetune": ("trainer.max_steps=1", "trainer.batch_size=16"),
        "fewshot": ("task.shots=[1]", "task.repeats=1", "task.features_dir=null"),
        "features": (),
    }
    for task, options in short.items():
        torch.manual_seed(len(found))  # other random state before
        go(tmp_path, *MODEL, f"task={task}", *options, f"run_name={task}", "checkpoint=random")
    assert len(found) == 5
    assert all(weights == found[0] for weights in found)
    begun = run(tmp_path / "begun", *MODEL, "trainer.max_steps=1", "trainer.warmup_epochs=1")  # its first rate is 0
    model = load_model(begun)
    assert found[0] == [p.flatten().tolist() for part in (model.patch_embed, model.blocks) for p in part.parameters()]
    go(tmp_path, *KNN, "run_name=other", "checkpoint=random", "seed=1")
    assert found[-1] != found[0]


def test_a_random_encoder_has_the_sizes_of_the_model() -> None:
    seed_all(0)
    one, again = source("random").encoder(), source("random").encoder()
    assert len(one.blocks) == 4
    assert one.cls_token.shape == (1, 1, 32)
    assert one.patch_embed.patch_size == (8, 8)
    assert fingerprint(one) != fingerprint(again), "weights are drawn, not fixed"
    assert len(source("random", "model.depth=2", "model.query_depth=2").encoder().blocks) == 2


# Tracked runs


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """URI of a real store, a run in it, and the folder of the run."""
    place = tmp_path_factory.mktemp("tracked")
    uri = f"{SQLITE}{place}/mlflow.db"
    tracking = ("tracking=mlflow", f"tracking.uri={uri}", "tracking.system_metrics_seconds=0")
    folder = run(place, *SMALLER, "seed=6", *tracking)
    return uri, json.loads((folder / "mlflow.json").read_text())["run_id"], folder


def of_store(uri: str, run_id: str) -> EncoderSource:
    return source(f"mlflow:{run_id}", "tracking=mlflow", f"tracking.uri={uri}")


def test_a_tracked_run(tracked: tuple[str, str, Path]) -> None:
    uri, run_id, folder = tracked
    found = of_store(uri, run_id)
    assert_weights(found.encoder(), weights(folder))
    assert found.origin(0, {}).tags["pretrained.seed"] == "6"
    assert found.origin(0, {}) == source(folder).origin(0, {})


def test_a_missing_tracked_run(tracked: tuple[str, str, Path], tmp_path: Path) -> None:
    uri, run_id, folder = tracked
    with pytest.raises(UserError, match=r"checkpoint=mlflow:1234: MLflow at sqlite:.* has no such run \(.*1234"):
        of_store(uri, "1234").encoder()
    missing = tmp_path / "mlflow.db"
    with pytest.raises(UserError, match=rf"there is no MLflow store {SQLITE}{missing}"):
        of_store(f"{SQLITE}{missing}", run_id).encoder()
    assert not list(tmp_path.iterdir()), "no store was made"
    with pytest.raises(UserError, match=rf"checkpoint=mlflow:{run_id} needs a tracking store.*tracking=mlflow"):
        source(f"mlflow:{run_id}").encoder()
    folder.rename(folder.with_name("away"))
    try:
        with pytest.raises(UserError, match=rf"mlflow:{run_id}: its run folder \({folder}\) is not on this machine"):
            of_store(uri, run_id).encoder()
    finally:
        folder.with_name("away").rename(folder)
