"""Origin of a run's encoder as the run reports it, and the fingerprint of an encoder."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import Origin, fingerprint
from semaim.checkpoints.pretrained import load_model
from semaim.models.flops import cost
from semaim.tasks.evaluation import split_differs
from support.commands import SMALL, journal, status
from support.encoders import KNN, SMALLER, TINY, newest, source, timm_folder, weights
from support.in_process import go, run


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
        "pretrained.method": "SemAIM",
        "pretrained.options": "data.patch_size=8 model.embed_dim=32 model.num_heads=2 "
        "trainer.batch_size=16 trainer.ema=true trainer.ema_decay=[0.5,0.5] trainer.warmup_epochs=0",
    }
    seconds = torch.load(newest(pretrained), weights_only=True)["device_seconds"]
    assert found.metrics == {
        "pretrained/epochs": pytest.approx(2 / 89),  # steps of 16 images
        "pretrained/images_seen": 32.0,
        "pretrained/device_hours": pytest.approx(seconds / 3600),
        "pretrained/flops": 32.0 * step_flops(pretrained),
    }
    assert 0 < seconds < 60
    assert found.step == 2
    assert found.data is not None
    assert found.data["patch_size"] == 8
    assert source(newest(pretrained)).origin(0, {}) == found
    averaged = source(pretrained, "task.source.ema=true").origin(0, {})
    assert averaged.tags == found.tags | {"pretrained.weights": "moving average"}
    assert averaged.metrics == found.metrics


def step_flops(folder: Path) -> int:
    """Operations of a training step per image: forward and backward, and a pass for the semantic map."""
    return cost(load_model(folder), encoder_passes=1).training_step


def test_flops_of_a_run_in_several_starts(pretrained: Path, tmp_path: Path) -> None:
    """A continued run counts all of its steps; one that starts from weights counts its own."""
    shorter = run(tmp_path, *SMALLER, "trainer.max_steps=1")
    assert source(shorter).origin(0, {}).metrics["pretrained/flops"] == 16.0 * step_flops(shorter)
    continued = run(tmp_path, *SMALLER, "trainer.max_steps=3")
    assert source(continued).origin(0, {}).metrics["pretrained/flops"] == 48.0 * step_flops(shorter)
    logged = [each["metrics"].get("train/total_flops") for each in journal(continued) if "metrics" in each]
    assert [value for value in logged if value] == [count * step_flops(shorter) for count in (16.0, 32.0, 48.0)]
    started = go(tmp_path, *SMALL, *SMALLER, "run_name=started", f"checkpoint={pretrained}")
    assert source(started).origin(0, {}).metrics["pretrained/flops"] == 32.0 * step_flops(started)


def test_a_checkpoint_without_flops_has_no_such_metric(pretrained: Path, tmp_path: Path) -> None:
    """As of earlier versions: neither its origin has them, nor a run that continues from it."""
    folder = Path(shutil.copytree(pretrained, tmp_path / "run"))
    (file,) = (folder / "checkpoints").glob("*.pt")
    state = torch.load(file, weights_only=True)
    del state["flops"]
    store.save(folder / "checkpoints", state.pop("step"), {k: v for k, v in state.items() if k != "format"})
    known = {"pretrained/epochs", "pretrained/images_seen", "pretrained/device_hours"}
    assert set(source(folder).origin(0, {}).metrics) == known
    averaged = ("trainer.ema=true", "trainer.ema_decay=[0.5,0.5]", "trainer.warmup_epochs=0")
    continued = run(tmp_path, *SMALLER, *averaged, "seed=5", "trainer.max_steps=3")
    found = source(continued).origin(0, {})
    assert (found.step, set(found.metrics)) == (3, known)
    assert "train/total_flops" not in {key for each in journal(continued)[-8:] for key in each.get("metrics", {})}


def test_flops_of_a_long_run_are_stored_exactly(tmp_path: Path) -> None:
    """More than 64 bits: 800 epochs of ImageNet with ViT-B are about 1e20."""
    store.save(tmp_path, 1, {"flops": 2**70 + 1})
    (file,) = tmp_path.glob("*.pt")
    assert torch.load(file, weights_only=True)["flops"] == 2**70 + 1


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


def test_a_run_reports_the_origin_of_its_encoder(pretrained: Path, tuned: Path, tmp_path: Path) -> None:
    """As tags; its results are logged at the step of the pretraining."""
    origin = source(pretrained).origin(0, {})
    for name, given in (("before", pretrained), ("after", tuned)):
        folder = go(tmp_path, *KNN, f"run_name={name}", f"checkpoint={given}")
        tags = [tag for line in journal(folder) for tag in line.get("tags", {}).items() if "pretrained" in tag[0]]
        assert len(tags) == 9
        assert dict(tags) == origin.tags
        logged = [(line["step"], line["metrics"]) for line in journal(folder) if "metrics" in line]
        result = status(folder)["result"]
        assert logged == [(2, origin.metrics), (2, {f"eval/{key}": value for key, value in result.items()})]


def test_another_split_of_the_same_data_gives_a_warning(pretrained: Path, tmp_path: Path) -> None:
    warning = "these data were split differently when the encoder was pretrained on them"

    def warned(name: str, **before: Any) -> bool:
        """Whether a run warns that its encoder was pretrained with another data configuration."""
        state = torch.load(newest(pretrained), weights_only=True)
        state["config"]["data"] |= before
        path = store.save(tmp_path / f"before_{name}", 2, state)
        folder = go(tmp_path, *KNN, f"run_name={name}", f"checkpoint={path}")
        return warning in (folder / "run.log").read_text()

    assert not warned("same")
    assert warned("share", val_fraction=0.1)
    now = torch.load(newest(pretrained), weights_only=True)["config"]["data"]
    assert not split_differs(now, now)
    assert split_differs(now | {"source": now["source"] | {"val_fraction": 0.5}}, now)
    assert split_differs(now | {"val_seed": 1, "val_fraction": 0.1}, now | {"val_fraction": 0.1})
    assert not split_differs(now | {"val_fraction": 0.1, "root": "elsewhere"}, now)
    assert not split_differs(now | {"val_fraction": 0.1, "source": {"_target_": "semaim.data.sources.cifar10"}}, now)


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
