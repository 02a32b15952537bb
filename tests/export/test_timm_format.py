"""Encoders exported for timm give the same outputs there, and are identical after import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import fingerprint
from semaim.checkpoints.pretrained import read_checkpoint
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.data.transforms import evaluation
from semaim.export import formats
from support import foreign_files
from support.commands import status, succeed
from support.encoders import source
from support.exporting import SMALL, by_timm, exported, images, photograph, stored
from support.in_process import go
from support.paths import GOLDEN_PIXELS


@torch.no_grad()
def test_timm_computes_the_same_tokens(pretrained: Path, tmp_path: Path) -> None:
    for options, ema in (((), False), (("--ema",), True)):
        folder = exported(tmp_path / str(ema), pretrained, *options)
        theirs, ours = by_timm(folder), stored(pretrained, ema)
        assert type(theirs) is VisionTransformer
        assert theirs.patch_embed.img_size == (32, 24)
        pictures = images(2, 32, 24)
        assert torch.equal(theirs.forward_features(pictures), ours.forward_features(pictures))
        assert torch.equal(theirs(pictures), ours.forward_features(pictures)[:, 0])
    assert not torch.equal(ours.blocks[0].mlp.fc1.weight, stored(pretrained).blocks[0].mlp.fc1.weight)


def test_timm_prepares_images_the_same_way(square: Path, tmp_path: Path) -> None:
    settings = timm.data.resolve_model_data_config(by_timm(exported(tmp_path, square)))
    settings |= {"mean": list(settings["mean"]), "std": list(settings["std"])}
    assert settings == {
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "mean": [0.3, 0.3, 0.3],
        "std": [0.36, 0.36, 0.36],
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    theirs = timm.data.create_transform(**settings)(photograph())
    ours = evaluation(32, crop_ratio=1.0, mean=[0.3] * 3, std=[0.36] * 3)(photograph())
    levels = ((theirs - ours) * 255 * 0.36).round().abs()  # torch rounds otherwise than Pillow
    assert torch.allclose(theirs, ours + (theirs - ours).sign() * levels / (255 * 0.36), rtol=0, atol=1e-5)
    assert levels.max() <= 1
    assert (levels > 0).double().mean() < 0.02


def test_the_crop_ratio_is_the_same(square: Path) -> None:
    found = StoredEncoder(square, read_checkpoint(square), False, None, None)
    found.state["config"]["data"]["eval_transform"]["crop_ratio"] = 0.73
    assert formats.timm_content(formats.Model(found)).settings["config.json"]["pretrained_cfg"]["crop_pct"] == 0.73


def test_export_and_import(pretrained: Path, tmp_path: Path) -> None:
    """Bit-identical, from the folder or its file: the same encoder for every command."""
    before = source(pretrained, "data.image_size=[32,24]")
    folder = exported(tmp_path, pretrained)
    for given in (folder, folder / "model.safetensors"):
        after = source(given, "data.image_size=[32,24]")
        state = before.encoder().state_dict()
        assert after.encoder().state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in after.encoder().state_dict().items())
        assert fingerprint(after.encoder()) == fingerprint(before.encoder())
        origin = before.origin(0, {})
        assert after.origin(0, {}).tags == origin.tags
        assert after.origin(0, {}).metrics == origin.metrics
        assert after.origin(0, {}).step == 2
    again = exported(tmp_path / "again", folder)
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_evaluation_of_an_exported_folder(square: Path, tmp_path: Path, capsys) -> None:
    """The same accuracies, from the same features."""
    said = succeed(tmp_path, str(square), "--output", "it", launcher=(sys.executable, "-m", "semaim", "export"))
    assert "evaluate it: semaim run task=knn checkpoint=it data=..." in said
    knn = (*SMALL[:-1], "task=knn", "task.ks=[10]")
    before = go(tmp_path / "runs", *knn, f"checkpoint={square}", "run_name=before")
    assert "features were computed before" not in capsys.readouterr().err
    after = go(tmp_path / "runs", *knn, f"checkpoint={tmp_path / 'it'}", "run_name=after")
    assert "features were computed before" in capsys.readouterr().err
    results = [status(folder)["result"] for folder in (before, after)]
    assert results[0] == results[1]
    assert results[0]["knn_10_mean"] > 30


def test_a_finished_evaluation_detects_another_export(square: Path, pretrained: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, square)
    before = store.fingerprint(folder)
    exported(tmp_path, pretrained, "--overwrite")
    assert store.fingerprint(folder) not in (before, None)


@torch.no_grad()
def test_an_official_checkpoint(tmp_path: Path) -> None:
    """The authors' own tokens, from timm."""
    with np.load(GOLDEN_PIXELS) as arrays:
        theirs = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config_json"}
    weights = {f"module.{name[6:]}": value for name, value in theirs.items() if name.startswith("state/")}
    torch.save({"state_dict": weights}, tmp_path / "official.pth")
    vit = by_timm(exported(tmp_path, tmp_path / "official.pth"))
    assert list(vit.pretrained_cfg["mean"]) == [0.485, 0.456, 0.406]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images_BCHW = ((theirs["images_uint8_nhwc"] / 255 - mean) / std).permute(0, 3, 1, 2)
    expected_BND = theirs["encoder_tokens"]
    assert (vit.forward_features(images_BCHW) - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()


@pytest.mark.parametrize(
    "make",
    [foreign_files.beit, foreign_files.dinov2_registers_swiglu, foreign_files.clip_openai, foreign_files.timm_parts,
     foreign_files.timm_no_class_token],
    ids=lambda make: make.__name__,
)  # fmt: skip
@torch.no_grad()
def test_encoders_of_other_projects(make: Any, tmp_path: Path) -> None:
    """Export for timm and import: bit-identical."""
    torch.save(make().content, tmp_path / "theirs.pth")
    folder = exported(tmp_path, tmp_path / "theirs.pth")
    before, theirs = source(tmp_path / "theirs.pth").encoder(), by_timm(folder)
    assert torch.equal(theirs.forward_features(images()), before.forward_features(images()))
    after = source(folder).encoder()
    assert torch.equal(after.forward_features(images()), before.forward_features(images()))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@torch.no_grad()
def test_a_fine_tuned_classifier_keeps_its_head(pool: str, tuned: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(tmp_path, tuned[pool])
    ours, theirs = stored(tuned[pool]), by_timm(folder)
    assert theirs.num_classes == 10
    assert torch.equal(theirs(images()), ours(images()))
    assert torch.equal(source(folder).trained_classifier(10)(images()), ours(images()))
    bare = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    assert torch.equal(bare.forward_features(images()), ours.forward_features(images()))


@torch.no_grad()
def test_a_fine_tuned_run_of_another_projects_encoder(tmp_path: Path) -> None:
    with torch.enable_grad():
        torch.save(foreign_files.beit().content, tmp_path / "beit.pth")
        options = (*SMALL, "task=finetune", "trainer.max_steps=1", "run_name=tuned", "task.pool=mean")
        run = go(tmp_path, *options, f"checkpoint={tmp_path / 'beit.pth'}")
    theirs = by_timm(exported(tmp_path, run))
    assert type(theirs).__name__ == "Beit"
    assert torch.equal(theirs(images()), stored(run)(images()))
