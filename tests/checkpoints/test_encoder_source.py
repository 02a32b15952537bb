"""Which encoder is evaluated, wherever it comes from, and what a run says of its origin."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from hydra.utils import instantiate
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import EncoderSource, Origin, fingerprint
from semaim.checkpoints.two_stream import load_model
from semaim.core.seeding import seed_all
from semaim.errors import UserError
from semaim.models.vit import encode
from semaim.tasks.evaluation import other_split
from semaim.tracking.store import SQLITE
from support.commands import journal, status
from support.in_process import composed, go, run
from support.paths import GOLDEN_PIXELS

SMALLER = ("data.patch_size=8", "trainer.max_steps=2")
# A model of 16 patches, for the encoders that no pretraining made.
MODEL = ("tracking=none", "data.patch_size=8", "model.embed_dim=32", "model.num_heads=2")
AVERAGED = ("trainer.ema=true", "trainer.ema_decay=[0.5,0.5]", "trainer.warmup_epochs=0")
KNN = (*MODEL, "task=knn", "task.features_dir=null", "task.ks=[10]")


def source(given: Path | str | None, *overrides: str) -> EncoderSource:
    """The encoder of a command line."""
    checkpoint = "null" if given is None else f"'{given}'"
    cfg = composed(*MODEL, "task=knn", f"checkpoint={checkpoint}", "run_name=x", *overrides)
    return instantiate(cfg.task.source, _convert_="all")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of two steps with a moving average."""
    return run(tmp_path_factory.mktemp("pretrained"), *SMALLER, *AVERAGED, "seed=5")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """Run folder of a fine-tuning of two steps."""
    options = ("task=finetune", "trainer.max_steps=2", "trainer.batch_size=16", "run_name=tuned")
    return go(tmp_path_factory.mktemp("tuned"), *MODEL, *options, f"checkpoint={pretrained}")


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("*.pt"))[-1]


def weights(folder: Path, part: str = "model") -> dict[str, Tensor]:
    return torch.load(newest(folder), weights_only=True)[part]


def assert_weights(encoder: VisionTransformer, expected: dict[str, Tensor]) -> None:
    """Bit for bit, and in eval mode."""
    assert not any(module.training for module in encoder.modules())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, expected[name]), name


# Runs and files of ours


def test_a_run_folder_and_its_files(pretrained: Path, tmp_path: Path) -> None:
    shutil.copy(newest(pretrained), tmp_path / "alone.pt")
    for given in (pretrained, f"{pretrained}/", newest(pretrained), pretrained / "checkpoints", tmp_path / "alone.pt"):
        assert_weights(source(given).encoder(), weights(pretrained))


@torch.no_grad()
def test_the_encoder_sees_what_the_model_does(pretrained: Path) -> None:
    tokens_BND = load_model(pretrained).encode(images())
    found = encode(source(pretrained).encoder(), images())
    assert torch.allclose(found["cls"], tokens_BND[:, 0], rtol=1e-5, atol=1e-5)
    assert torch.allclose(found["mean"], tokens_BND[:, 1:].mean(1), rtol=1e-5, atol=1e-5)


def test_the_moving_average(pretrained: Path) -> None:
    averaged = weights(pretrained, "ema")
    assert_weights(source(pretrained, "task.source.ema=true").encoder(), averaged)
    assert not torch.equal(averaged["blocks.0.mlp.fc1.weight"], weights(pretrained)["blocks.0.mlp.fc1.weight"])


def test_a_fine_tuned_run_and_its_best(tuned: Path) -> None:
    for given in (tuned, tuned / "best", newest(tuned)):
        found = source(given).encoder()
        assert_weights(found, weights(tuned))
        assert found.global_pool == "avg"
        assert torch.equal(found.fc_norm.weight, weights(tuned)["fc_norm.weight"])
    with pytest.raises(UserError, match=r"holds no moving average: its run had trainer\.ema=false"):
        source(tuned, "task.source.ema=true").encoder()


def test_the_trained_head_comes_along(tuned: Path) -> None:
    found = source(tuned).trained_classifier(10)
    assert_weights(found, weights(tuned))
    with torch.no_grad():
        features_BD = encode(found, images())["mean"]
        expected_BC = features_BD @ weights(tuned)["head.weight"].T + weights(tuned)["head.bias"]
        assert torch.allclose(found(images()), expected_BC, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"was fine-tuned for 10 classes, the data have 9"):
        source(tuned).trained_classifier(9)


def test_nothing_is_evaluated_without_being_named() -> None:
    with pytest.raises(Exception, match=r"needs a checkpoint: say which with checkpoint=runs/<name>") as raised:
        source(None)
    assert isinstance(raised.value.__cause__, UserError)


def test_places_that_hold_no_encoder(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint=.*nope does not exist"):
        source(tmp_path / "nope").encoder()
    with pytest.raises(UserError, match=rf"checkpoint={tmp_path} is a folder without checkpoints"):
        source(tmp_path).encoder()
    probe = ("task=linprobe", "trainer.max_steps=1", "run_name=probe")
    folder = go(tmp_path, *MODEL, *probe, f"checkpoint={pretrained}")
    with pytest.raises(UserError, match=r"checkpoint=.*/probe is of an evaluation, it holds no pretrained"):
        source(folder).encoder()
    knn = go(tmp_path, *KNN, "run_name=knn", f"checkpoint={pretrained}")
    with pytest.raises(UserError, match=r"checkpoint=.*/knn is a folder without checkpoints"):
        source(knn).encoder()


def test_a_home_folder(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pretrained.parent))
    assert_weights(source(f"~/{pretrained.name}").encoder(), weights(pretrained))


# Official checkpoints


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of SemAIM's code, and what that code made of it."""
    path = tmp_path_factory.mktemp("official") / "checkpoint.pth"
    with np.load(GOLDEN_PIXELS) as arrays:
        theirs = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config_json"}
        config = json.loads(str(arrays["config_json"]))
    state = {f"module.{name[6:]}": value for name, value in theirs.items() if name.startswith("state/")}
    torch.save({"state_dict": state, "epoch": 3, "model": "aim_base"}, path)
    return path, theirs | {"config": config}


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
def test_heads_of_an_official_checkpoint_can_be_said(official: tuple[Path, dict[str, Any]]) -> None:
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
    """The comparison of tasks with `checkpoint=random` is one of the same weights: those pretraining begins with."""
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
        "fewshot": ("task.shots=[1]", "task.repeats=1", "trainer.epochs=1", "task.features_dir=null"),
        "features": (),
    }
    for task, options in short.items():
        torch.manual_seed(len(found))  # whatever was random before
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


# Models of timm, from a folder: there is no network


def timm_folder(folder: Path, name: str = "vit_tiny_patch16_224", **sizes: Any) -> tuple[str, torch.nn.Module]:
    """A model of timm's in a folder, as timm's own export makes it; the checkpoint that means it."""
    torch.manual_seed(3)
    model = timm.create_model(name, **sizes)
    timm.models.save_for_hf(model, folder, safe_serialization=False)
    return f"timm:local-dir:{folder}", model


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def test_a_model_of_timm(tmp_path: Path) -> None:
    given, model = timm_folder(tmp_path / "vit", **TINY, num_classes=7)
    found = source(given).encoder()
    assert not any(module.training for module in found.modules())
    theirs = model.state_dict()
    assert found.state_dict().keys() == theirs.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(value, theirs[name]) for name, value in found.state_dict().items())
    with torch.no_grad():
        expected_BND = model.eval().forward_features(images())
        assert torch.equal(encode(found, images())["cls"], expected_BND[:, 0])


def test_a_model_of_timm_is_evaluated(tmp_path: Path) -> None:
    given, _ = timm_folder(tmp_path / "vit", **TINY, num_classes=7)
    result = status(go(tmp_path, *KNN, "run_name=knn", f"checkpoint='{given}'"))["result"]
    assert set(result) == {"knn_10_cls", "knn_10_mean"}
    assert result["knn_10_mean"] > 20


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_model_of_timm_is_fine_tuned_and_measured_again(tmp_path: Path, pool: str) -> None:
    given, model = timm_folder(tmp_path / "vit", **TINY, num_classes=7)
    tune = (*MODEL, "task=finetune", f"task.pool={pool}", "run_name=tuned", f"checkpoint='{given}'")
    steps = ("trainer.batch_size=16", "trainer.max_steps=1")  # the warm-up's first learning rate is 0
    folder = go(tmp_path, *tune, *steps)
    own = model.state_dict()
    new = {"head.weight", "head.bias"} | ({"fc_norm.weight", "fc_norm.bias"} if pool == "mean" else set())
    for name, value in weights(folder).items():
        assert name in new or torch.equal(value, own[name]), name
    assert weights(folder)["head.weight"].shape == (10, 32)
    alone = ("task=finetune", "task.eval_only=true", "run_name=alone", f"checkpoint={folder}")
    assert status(go(tmp_path, *MODEL, *alone))["result"]["finetune"] == status(folder)["result"]["finetune"]


def test_a_model_without_a_class_token(tmp_path: Path) -> None:
    given, _ = timm_folder(tmp_path / "vit", **TINY, num_classes=7, class_token=False, global_pool="avg")
    found = source(given).encoder()
    assert set(encode(found, images())) == {"mean"}
    options = (*MODEL, "task=linprobe", "trainer.max_steps=1", "run_name=probe", f"checkpoint='{given}'")
    with pytest.raises(Exception, match=r"has no class token: set task\.features=\[mean\]") as raised:
        go(tmp_path, *options, "task.features=[cls,mean]")
    assert isinstance(raised.value.__cause__, UserError)
    assert set(status(go(tmp_path, *options, "task.features=[mean]"))["result"]) == {"linprobe_mean"}


def test_a_register_is_no_class_token(tmp_path: Path) -> None:
    sizes = {**TINY, "class_token": False, "reg_tokens": 2, "global_pool": "avg"}
    given, _ = timm_folder(tmp_path / "vit", **sizes)
    assert set(encode(source(given).encoder(), images())) == {"mean"}


def test_a_model_of_timm_is_fine_tuned_for_as_many_classes_as_before(tmp_path: Path) -> None:
    given, model = timm_folder(tmp_path / "vit", **TINY, num_classes=10)
    found = source(given).classifier(10, "mean", 0.1)
    assert torch.equal(found.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert torch.equal(found.fc_norm.weight, torch.ones(32))
    assert found.head.weight.std() < 1e-4


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_model_of_timm_that_is_no_vision_transformer_is_refused(tmp_path: Path, name: str) -> None:
    given, _ = timm_folder(tmp_path / "other", name)
    with pytest.raises(UserError, match=rf"checkpoint={given} is not a vision transformer"):
        source(given).encoder()


def test_a_model_that_timm_cannot_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name, no network, no such folder: one message."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text('{"architecture": "vit_tiny_')
    for given in (
        "timm:vit_of_nobody",
        "timm:",
        "timm:vit_tiny_patch16_224",
        f"timm:local-dir:{tmp_path / 'nope'}",
        f"timm:local-dir:{tmp_path / 'half'}",
    ):
        with pytest.raises(
            UserError, match=rf"checkpoint={given}: timm cannot give this model \(.+\)\. Is it one"
        ) as e:
            source(given).encoder()
        assert "\n" not in str(e.value)


def test_a_model_of_timm_without_weights(tmp_path: Path) -> None:
    given, _ = timm_folder(tmp_path / "vit", **TINY)
    (tmp_path / "vit" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"timm cannot give this model \(.+\)"):
        source(given).encoder()


# Origins


def test_origin_of_a_pretraining_run(pretrained: Path) -> None:
    found = source(pretrained).origin(0, {"model": "of this run", "data": "of this run"})
    assert found.tags == {
        "pretrained.run": "run",
        "pretrained.seed": "5",
        "pretrained.device": "cpu",
        "pretrained.model": "aim_tiny",
        "pretrained.permutation": "attention_center",
        "pretrained.target": "pixels",
        "pretrained.data": "digits",
        "pretrained.options": "data.patch_size=8 model.embed_dim=32 model.num_heads=2 "
        "trainer.batch_size=16 trainer.ema=true trainer.ema_decay=[0.5,0.5] trainer.warmup_epochs=0",
    }
    seconds = torch.load(newest(pretrained), weights_only=True)["device_seconds"]
    assert found.metrics == {
        "pretrained/epochs": pytest.approx(2 / 89),  # steps of 16 images
        "pretrained/images_seen": 32.0,
        "pretrained/device_hours": pytest.approx(seconds / 3600),
    }
    assert 0 < seconds < 60
    assert found.step == 2
    assert found.data is not None
    assert found.data["patch_size"] == 8
    assert source(newest(pretrained)).origin(0, {}) == found
    averaged = source(pretrained, "task.source.ema=true").origin(0, {})
    assert averaged.tags == found.tags | {"pretrained.weights": "moving average"}
    assert averaged.metrics == found.metrics


def test_origin_of_a_fine_tuned_run_is_its_pretraining(pretrained: Path, tuned: Path) -> None:
    before = source(pretrained).origin(0, {})
    for given in (tuned, tuned / "best"):
        found = source(given).origin(0, {"model": "of this run"})
        assert asdict(found) == asdict(before) | {"data": None}


def test_origin_of_others(official: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    assert source(official[0]).origin(0, {"model": "aim_tiny"}) == Origin({"pretrained.run": str(official[0])})
    given, _ = timm_folder(tmp_path / "vit", **TINY)
    assert source(given).origin(0, {"model": "aim_tiny"}) == Origin({"pretrained.run": given})
    random = {"pretrained.run": "random", "pretrained.seed": "7", "pretrained.model": "aim_tiny"}
    nothing = {"pretrained/epochs": 0.0, "pretrained/images_seen": 0.0}
    assert source("random").origin(7, {"model": "aim_tiny", "data": "digits"}) == Origin(random, nothing)


def test_a_run_says_where_its_encoder_is_from(pretrained: Path, tuned: Path, tmp_path: Path) -> None:
    """As tags; its results stand at the step of the pretraining."""
    origin = source(pretrained).origin(0, {})
    for name, given in (("before", pretrained), ("after", tuned)):
        folder = go(tmp_path, *KNN, f"run_name={name}", f"checkpoint={given}")
        tags = [tag for line in journal(folder) for tag in line.get("tags", {}).items() if "pretrained" in tag[0]]
        assert len(tags) == 8
        assert dict(tags) == origin.tags
        logged = [(line["step"], line["metrics"]) for line in journal(folder) if "metrics" in line]
        result = status(folder)["result"]
        assert logged == [(2, origin.metrics), (2, {f"eval/{key}": value for key, value in result.items()})]


def test_another_split_of_the_same_data_is_warned_of(pretrained: Path, tmp_path: Path) -> None:
    warning = "these data were split otherwise when the encoder was pretrained on them"

    def warned(name: str, **before: Any) -> bool:
        """Whether a run warns of an encoder that was pretrained on data of another configuration."""
        state = torch.load(newest(pretrained), weights_only=True)
        state["config"]["data"] |= before
        path = store.save(tmp_path / f"before_{name}", 2, state)
        folder = go(tmp_path, *KNN, f"run_name={name}", f"checkpoint={path}")
        return warning in (folder / "run.log").read_text()

    assert not warned("same")
    assert warned("share", val_fraction=0.1)
    now = torch.load(newest(pretrained), weights_only=True)["config"]["data"]
    assert not other_split(now, now)
    assert other_split(now | {"source": now["source"] | {"val_fraction": 0.5}}, now)
    assert other_split(now | {"val_seed": 1, "val_fraction": 0.1}, now | {"val_fraction": 0.1})
    assert not other_split(now | {"val_fraction": 0.1, "root": "elsewhere"}, now)
    assert not other_split(now | {"val_fraction": 0.1, "source": {"_target_": "semaim.data.sources.cifar10"}}, now)


# Fingerprints


def test_the_same_weights_have_the_same_fingerprint_wherever_they_are(pretrained: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights(pretrained).items()}}, tmp_path / "official.pth")
    shutil.copytree(pretrained, tmp_path / "elsewhere")
    places = (pretrained, newest(pretrained), tmp_path / "elsewhere")
    (one,) = {fingerprint(source(given).encoder()) for given in places}
    assert len(one) == 64
    official = source(tmp_path / "official.pth", "task.source.num_heads=2").encoder()
    assert fingerprint(official) == one
    assert fingerprint(source(pretrained, "task.source.ema=true").encoder()) != one


def test_a_single_weight_changes_the_fingerprint(pretrained: Path) -> None:
    encoder = source(pretrained).encoder()
    found = {fingerprint(encoder)}
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            before = parameter.view(-1)[-1].item()
            parameter.view(-1)[-1] = before * (1 + 1e-6) if before else 1e-30
            assert parameter.view(-1)[-1].item() != before
            assert fingerprint(encoder) not in found, name
            found.add(fingerprint(encoder))
            parameter.view(-1)[-1] = before
    assert fingerprint(encoder) in found
    assert len(found) == 1 + 4 + 4 * 12 + 2


def test_kept_features_are_of_the_encoder_with_its_heads(pretrained: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": weights(pretrained)}, tmp_path / "official.pth")
    results = []
    for heads, kept in ((2, tmp_path / "kept"), (4, tmp_path / "kept"), (4, "null")):
        options = (*KNN, f"task.features_dir={kept}", f"task.source.num_heads={heads}", f"run_name=knn{len(results)}")
        results.append(status(go(tmp_path, *options, f"checkpoint={tmp_path / 'official.pth'}"))["result"])
    assert results[1] == results[2] != results[0]


# Tracked runs


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """Address of a real store, a run in it, and the folder of the run."""
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


def test_a_tracked_run_that_is_not_there(tracked: tuple[str, str, Path], tmp_path: Path) -> None:
    uri, run_id, folder = tracked
    with pytest.raises(UserError, match=r"checkpoint=mlflow:1234: MLflow at sqlite:.* gives no such run \(.*1234"):
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
