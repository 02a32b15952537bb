"""Encoders of other projects give the outputs of the projects' models, from files in the projects' own layouts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import beit as timm_beit
from timm.models.vision_transformer import checkpoint_filter_fn

from semaim.checkpoints.encoder_source import fingerprint
from semaim.checkpoints.formats import LAYOUTS
from semaim.errors import UserError
from support import foreign_files
from support.encoders import MODEL, SMALL_RUN, images, source
from support.foreign_files import FAMILIES
from support.foreign_layouts import TIMM_SIZES, File, randomised, saved
from support.in_process import go


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Captured log messages."""
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
@torch.no_grad()
def test_tokens_are_those_of_the_family(make: Callable[[], File], tmp_path: Path, messages) -> None:
    file = make()
    found = source(saved(file, tmp_path), *file.options).encoder()
    assert not any(module.training for module in found.modules())
    expected_BND, found_BND = file.tokens(images()), found.forward_features(images())
    assert found_BND.shape == expected_BND.shape
    assert (found_BND - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()
    assert f": {file.family}, width 32, 3 blocks, 2 heads, images of 32x32 in patches of 8; " in messages.text
    said = re.search(r"left out: (.*)", messages.text)
    parts = dict(re.findall(r"([a-z ]+?) \((\d+) weights?\)", said[1].replace(", ", ","))) if said else {}
    assert {part.strip(): int(number) for part, number in parts.items()} == file.left_out


def test_every_family_is_a_row_of_the_table() -> None:
    found = {make().family for make in FAMILIES}
    assert found == {layout.family for layout in LAYOUTS}


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_normalisation_of_the_family(make: Callable[[], File], tmp_path: Path, messages) -> None:
    """A message reports it if it is known and differs from that of the data."""
    file = make()
    path, warning = saved(file, tmp_path), "expects another colour normalisation than that of these data"
    source(path, *file.options).encoder()
    if file.mean is None:
        assert warning not in messages.text
        return
    assert f"data.train_transform.mean=[{','.join(f'{value:.6g}' for value in file.mean)}] " in messages.text
    messages.clear()
    (mean, std) = next(layout.normalisation for layout in LAYOUTS if layout.family == file.family)
    same = (f"data.train_transform.mean={list(mean)}", f"data.train_transform.std={list(std)}")
    source(path, *file.options, *same).encoder()
    assert warning not in messages.text


def test_properties_missing_in_weights_are_reported(tmp_path: Path, messages) -> None:
    path = saved(foreign_files.clip_open_clip(), tmp_path)
    gelu = source(path).encoder()
    assert "assuming GELU" in messages.text
    messages.clear()
    quick = source(path, "task.source.architecture=vit_base_patch16_clip_quickgelu_224").encoder()
    assert "assuming GELU" not in messages.text
    assert not torch.allclose(gelu.forward_features(images()), quick.forward_features(images()), rtol=1e-3)
    path = saved(foreign_files.beit(), tmp_path)
    source(path, "task.source.architecture=beitv2_base_patch16_224").encoder()
    assert "data.train_transform.mean=[0.485,0.456,0.406]" in messages.text
    assert "BEiT 1" not in messages.text


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_kinds_of_files(tmp_path: Path, suffix: str) -> None:
    file = foreign_files.timm_plain()
    write = save_file if suffix == ".safetensors" else torch.save
    write(file.content, tmp_path / f"weights{suffix}")
    found = source(tmp_path / f"weights{suffix}").encoder()
    assert torch.equal(found.forward_features(images()), file.tokens(images()))


def test_half_precision_is_converted_to_float32(tmp_path: Path) -> None:
    """OpenAI's files hold two-byte numbers."""
    content = {name: value.half() for name, value in foreign_files.clip_openai().content.items()}
    torch.save(content, tmp_path / "half.pth")
    found = source(tmp_path / "half.pth").encoder()
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert torch.equal(found.blocks[0].mlp.fc1.bias, content["visual.transformer.resblocks.0.mlp.c_fc.bias"].float())


def test_a_prefix_of_every_wrapper(tmp_path: Path) -> None:
    file = foreign_files.timm_plain()
    expected = None
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.backbone."):
        torch.save({"state_dict": {f"{prefix}{k}": v for k, v in file.content.items()}}, tmp_path / "wrapped.pth")
        found = source(tmp_path / "wrapped.pth").encoder().state_dict()
        expected = expected or found
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_numbers_of_heads(tmp_path: Path) -> None:
    path = saved(foreign_files.timm_plain(), tmp_path)
    assert source(path, "task.source.num_heads=8").encoder().blocks[0].attn.num_heads == 8
    with pytest.raises(UserError, match=r"task\.source\.num_heads=5 does not divide the width 32 of checkpoint="):
        source(path, "task.source.num_heads=5").encoder()
    with pytest.raises(UserError, match=r"weights\.pth has 2 attention heads, not 4"):  # known from BEiT's tables
        source(saved(foreign_files.beit(), tmp_path), "task.source.num_heads=4").encoder()


@torch.no_grad()
def test_an_odd_width_of_the_mlp(tmp_path: Path) -> None:
    """Floating-point products must not lose a neuron."""
    for hidden in (1, 33, 43, 57, 86, 117, 172):
        model = timm.create_model("vit_tiny_patch16_224", **TIMM_SIZES, mlp_ratio=(hidden + 0.5) / 32)
        torch.save(model.state_dict(), tmp_path / "odd.pth")
        found = source(tmp_path / "odd.pth").encoder()
        assert found.blocks[0].mlp.fc1.weight.shape == (hidden, 32)
        assert torch.equal(found.forward_features(images()), model.eval().forward_features(images()))


# Another grid


@pytest.mark.parametrize(
    ("make", "name", "convert"),
    [
        (foreign_files.timm_plain, "vit_tiny_patch16_224", checkpoint_filter_fn),
        (foreign_files.timm_parts, "vit_tiny_patch16_224", checkpoint_filter_fn),
        (foreign_files.dinov2_registers, "vit_base_patch14_reg4_dinov2", checkpoint_filter_fn),
        (foreign_files.clip_openai, "vit_base_patch16_clip_quickgelu_224", checkpoint_filter_fn),
        (foreign_files.beit, "beit_base_patch16_224", timm_beit.checkpoint_filter_fn),
        (foreign_files.beit_shared, "beit_base_patch16_224", timm_beit.checkpoint_filter_fn),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("size", ["48", "[24,40]"])
@torch.no_grad()
def test_positions_for_another_grid_are_those_that_timm_makes(make, name, convert, size, tmp_path, messages) -> None:
    """Bit-identical to what timm loads into a model of that size."""
    file = make()
    path = saved(file, tmp_path)
    found = source(path, "task.source.interpolate=true", f"data.image_size={size}").encoder()
    here = source(path).encoder()
    side = found.patch_embed.img_size
    assert side == ((48, 48) if size == "48" else (24, 40))
    assert f"positions of 32x32 pixels are resampled to {side[0]}x{side[1]}" in messages.text
    args = dict(here.architecture["classifier"]["sizes"].get("args", {}))
    args = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2} | args | {"img_size": side}
    theirs = timm.create_model(name, **args, num_classes=0, global_pool="token").eval()
    content = file.content.get("model", file.content)
    outcome = theirs.load_state_dict(convert(dict(content), theirs), strict=False)
    assert not outcome.missing_keys
    pictures = torch.randn(2, 3, *side, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.forward_features(pictures), theirs.forward_features(pictures))
    assert fingerprint(found) != fingerprint(here)


def test_positions_of_our_own_encoders(tmp_path: Path) -> None:
    """Sine-cosine positions of a non-square grid are resized to a finer one and are close to its own positions."""
    folder = go(tmp_path, *SMALL_RUN, "data.image_size=[32,24]", "run_name=run")
    before = source(folder).encoder()
    resized = source(folder, "task.source.interpolate=true", "data.image_size=[64,48]").encoder()
    assert before.patch_embed.grid_size == (4, 3)
    assert resized.patch_embed.grid_size == (8, 6)
    assert torch.equal(resized.pos_embed[:, 0], before.pos_embed[:, 0])
    coarse_HWD, fine_HWD = (vit.pos_embed[0, 1:].unflatten(0, vit.patch_embed.grid_size) for vit in (before, resized))
    expected_HWD = F.interpolate(coarse_HWD.permute(2, 0, 1)[None], (8, 6), mode="bicubic", antialias=True)
    assert torch.equal(fine_HWD, expected_HWD[0].permute(1, 2, 0))
    of_four_HWD = fine_HWD.unflatten(0, (4, 2)).unflatten(2, (3, 2)).mean((1, 3))
    assert (of_four_HWD - coarse_HWD)[1:3, 1].abs().max() < 0.1 < coarse_HWD[1:3, 1].abs().max()
    assert resized.architecture["classifier"]["sizes"]["image_size"] == (64, 48)
    unchanged = source(folder, "task.source.interpolate=true", "data.image_size=[32,24]").encoder()
    assert fingerprint(unchanged) == fingerprint(before) != fingerprint(resized)


def test_another_grid_must_be_requested(tmp_path: Path) -> None:
    path = saved(foreign_files.dinov2(), tmp_path)
    with pytest.raises(Exception, match=r"task\.source\.interpolate=true") as raised:
        go(tmp_path, *MODEL, "task=knn", f"checkpoint={path}", "data.image_size=48", "run_name=knn")
    assert "is for images of 32x32, the data are of 48x48" in str(raised.value)
    with pytest.raises(UserError, match=r"data\.image_size=36x36 is not divisible by the encoder's patches of 8x8"):
        source(path, "task.source.interpolate=true", "data.image_size=36", "data.patch_size=4").encoder()


# Folders of timm


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 10}),
        ("vit_tiny_patch16_224", {"num_classes": 0, "class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("vit_base_patch16_siglip_224", {"num_classes": 0, "global_pool": "map"}),
        ("eva02_tiny_patch14_224", {"num_classes": 10}),
        ("deit3_small_patch16_224", {"num_classes": 10, "init_values": 1e-5}),
    ],
)
@torch.no_grad()
def test_a_folder_of_timm(tmp_path: Path, name: str, more: dict) -> None:
    """Its config.json gives what the weights do not, for any of timm's vision transformers."""
    sizes = {**TIMM_SIZES, "num_heads": 4} | more  # not the number of heads that the width implies
    model = randomised(timm.create_model(name, **sizes))
    timm.models.save_for_hf(model, tmp_path / "folder", model_args=sizes, safe_serialization=True)
    for given in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
        found = source(given).encoder()
        assert found.blocks[0].attn.num_heads == 4
        assert torch.equal(found.forward_features(images()), model.forward_features(images()))
    if more["num_classes"]:
        assert torch.equal(source(tmp_path / "folder").trained_classifier(10)(images()), model(images()))
    with pytest.raises(UserError, match=r"the config\.json of checkpoint=.* defines the model"):
        source(tmp_path / "folder", "task.source.num_heads=2").encoder()


def test_a_timm_folder_may_be_deleted(tmp_path: Path) -> None:
    """A fine-tuned run builds its model without the folder of its initial encoder."""
    model = randomised(timm.create_model("vit_tiny_patch16_224", **TIMM_SIZES, num_classes=3))
    timm.models.save_for_hf(model, tmp_path / "folder", model_args=TIMM_SIZES, safe_serialization=True)
    options = ("task=finetune", "trainer.max_steps=1", "trainer.batch_size=16", "run_name=tuned")
    folder = go(tmp_path, *MODEL, *options, f"checkpoint='timm:local-dir:{tmp_path / 'folder'}'")
    (tmp_path / "folder").rename(tmp_path / "away")
    assert source(folder).trained_classifier(10)(images()).shape == (2, 10)
