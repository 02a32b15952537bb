"""What `checkpoint=` takes is a teacher, what a teacher takes is a checkpoint, and both compute the same tokens.

Shapes: B images, N tokens (cls first), D width, P channels after CLIP's projection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from torch import Tensor

from semaim.checkpoints.pretrained import load_model
from semaim.errors import UserError
from support import foreign_files
from support.commands import losses, status, succeed
from support.encoders import KNN, MODEL, images, source, weights
from support.exporting import exported
from support.foreign_files import FAMILIES
from support.foreign_layouts import TIMM_SIZES, File, randomised, saved
from support.in_process import go
from support.teaching import (
    CLIP_LAYOUTS,
    DINO_LAYOUTS,
    GREY,
    loaded,
    network,
    teacher,
    tiny_clip,
    tiny_dino,
    visual,
    write,
)

CANNOT_TEACH = ("beit", "beit_shared", "beit_absolute", "simmim", "timm_beit", "timm_no_class_token")
QUICK = "task.source.architecture=vit_base_patch16_clip_quickgelu_224"


@register_model
def tiny_plain(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """The sizes of the files of other projects."""
    return _create_vision_transformer("tiny_plain", pretrained=pretrained, **{**TIMM_SIZES, **options})


def by_weights(path: Path | str, **options: Any) -> Any:
    """A loaded teacher whose weights determine the model, for 8-pixel patches, without another normalisation."""
    usual = {"model": None, "projection": False, "patch_size": 8, "normalization": "data"}
    found = teacher(weights=str(path), **{**usual, **options})
    found.load()
    return found


def without_registers(tokens_BND: Tensor) -> Tensor:
    return torch.cat([tokens_BND[:, :1], tokens_BND[:, -16:]], 1)


# Every source as a teacher


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
@torch.no_grad()
def test_every_family_teaches_the_tokens_of_its_evaluation(make: Callable[[], File], tmp_path: Path) -> None:
    file = make()
    path = saved(file, tmp_path)
    if make.__name__ in CANNOT_TEACH:
        with pytest.raises(UserError, match=rf"^target\.weights={path} cannot be a teacher: .* class token"):
            by_weights(path)
        return
    found, evaluated = by_weights(path), source(path).encoder()
    tokens_BND = found.encode(images())
    assert found.channels == tokens_BND.shape[-1] == 32
    expected_BND = without_registers(evaluated.forward_features(images()))
    assert (tokens_BND - expected_BND).abs().max() <= 1e-6 * expected_BND.abs().max()
    if not file.options:  # else the file does not determine the activation
        expected_BND = without_registers(file.tokens(images()))
        assert (tokens_BND - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()
    attention_BL = found.encode_with_attention(images())[1]
    assert attention_BL.shape == (2, 16)


@torch.no_grad()
def test_a_run_its_files_and_its_exports_are_the_same_teacher(pretrained: Path, tmp_path: Path) -> None:
    expected_BND = load_model(pretrained).encode(images())
    (kept,) = (pretrained / "checkpoints").glob("*.pt")
    given = [pretrained, pretrained / "checkpoints", kept]
    given += [exported(tmp_path / format, pretrained, "--format", format) for format in ("timm", "huggingface")]
    given += [f"timm:local-dir:{given[3]}"]
    checksums = set()
    for each in given:
        found = by_weights(each)
        checksums.add(found.identity["checksum"])
        assert (found.encode(images()) - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()
    assert len(checksums) == 1
    other_B3HW = images(2, 48)  # another grid than that of the run
    resized = source(pretrained, "task.source.interpolate=true", "data.image_size=48").encoder()
    expected_BND = resized.forward_features(other_B3HW)
    assert (by_weights(pretrained).encode(other_B3HW) - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()


def test_the_weights_teach_not_their_moving_average(pretrained: Path) -> None:
    found = by_weights(pretrained).network.blocks[0].mlp.fc1.weight
    name = "blocks.0.mlp.fc1.weight"
    assert torch.equal(found, weights(pretrained)[name])
    assert not torch.equal(found, weights(pretrained, "ema")[name])


@torch.no_grad()
def test_a_fine_tuned_run_is_a_teacher(tuned: Path) -> None:
    found, evaluated = by_weights(tuned), source(tuned).encoder()
    expected_BND = evaluated.fc_norm(evaluated.forward_features(images()))
    assert torch.allclose(found.encode(images()), expected_BND, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_an_official_checkpoint_is_a_teacher(official: tuple[Path, dict[str, Any]]) -> None:
    path, theirs = official
    images_BCHW = (theirs["images_uint8_nhwc"] / 255).permute(0, 3, 1, 2)
    found = by_weights(path, normalization="teacher", patch_size=16, mean=(0, 0, 0), std=(1, 1, 1))
    expected_BND = theirs["encoder_tokens"]
    assert (found.encode(images_BCHW) - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()


@torch.no_grad()
def test_clips_projection_is_kept_on_request(tmp_path: Path) -> None:
    file = foreign_files.clip_openai()
    path = saved(file, tmp_path)
    plain, projected = by_weights(path), by_weights(path, projection=True)
    expected_BNP = file.tokens(images()) @ file.content["visual.proj"]
    assert (plain.channels, projected.channels) == (32, 16)
    assert (projected.encode(images()) - expected_BNP).abs().max() <= 1e-5 * expected_BNP.abs().max()


@pytest.mark.parametrize("make", [foreign_files.mae_pretrained, foreign_files.dino_whole])
@torch.no_grad()
def test_a_named_model_takes_the_same_files(make: Callable[[], File], tmp_path: Path) -> None:
    file = make()
    path = saved(file, tmp_path)
    named = by_weights(path, model="tiny_plain")
    expected_BND = file.tokens(images())
    assert (named.encode(images()) - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()
    assert named.identity["checksum"] == by_weights(path).identity["checksum"]
    assert named.identity["model"] == "tiny_plain"


def test_a_named_model_takes_the_file_in_a_folder_of_timm(tmp_path: Path) -> None:
    """Files of the hub come with a config.json, which a named model does not need."""
    model = randomised(timm.create_model("vit_tiny_patch16_224", **TIMM_SIZES))
    timm.models.save_for_hf(model, tmp_path, model_args=TIMM_SIZES, safe_serialization=True)
    for given in (tmp_path, tmp_path / "model.safetensors"):
        found = by_weights(given, model="tiny_plain").network
        assert torch.equal(found.blocks[2].mlp.fc2.weight, model.blocks[2].mlp.fc2.weight)
    assert torch.equal(by_weights(tmp_path).network.norm.bias, model.norm.bias)


# Every file of a teacher as a checkpoint


@pytest.mark.parametrize("layout", DINO_LAYOUTS)
@torch.no_grad()
def test_dino_in_every_layout_is_a_checkpoint(layout: str, tmp_path: Path) -> None:
    made = network(tiny_dino)
    path = write(tmp_path / layout, DINO_LAYOUTS[layout](made))
    found = source(path, "task.source.num_heads=2").encoder()
    assert torch.equal(found.forward_features(images()), made.forward_features(images()))
    named = loaded("tiny_dino.here", path, normalization="data", patch_size=8)
    assert torch.equal(named.encode(images()), made.forward_features(images()))


@pytest.mark.parametrize("layout", CLIP_LAYOUTS)
@torch.no_grad()
def test_clip_in_every_layout_is_a_checkpoint(layout: str, tmp_path: Path) -> None:
    made = network(tiny_clip)
    path = write(tmp_path / layout, CLIP_LAYOUTS[layout](made))
    found = source(path, "task.source.num_heads=2", QUICK).encoder()
    assert torch.equal(found.forward_features(images()), made.forward_features(images()))
    named = loaded("tiny_clip.here", path, normalization="data", patch_size=8, projection=False)
    assert torch.equal(named.encode(images()), made.forward_features(images()))


# Properties


def test_the_normalisation_is_that_of_the_run(pretrained: Path, tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)
    found = by_weights(pretrained, normalization="teacher", mean=(0.0,) * 3, std=(1.0,) * 3)
    config = torch.load(next((pretrained / "checkpoints").glob("*.pt")), weights_only=True)["config"]
    mean, std = (config["data"]["eval_transform"][name] for name in ("mean", "std"))
    seen_BCHW = found.teacher_images(torch.full((1, 3, 32, 32), 0.5))
    assert seen_BCHW[0, :, 0, 0].tolist() == pytest.approx([(0.5 - m) / s for m, s in zip(mean, std, strict=True)])
    assert "does not show the colour normalisation" not in caplog.text
    unknown = by_weights(saved(foreign_files.dino_backbone(), tmp_path), normalization="teacher", **GREY)
    assert torch.equal(unknown.teacher_images(images()), images())
    assert "weights.pth does not show the colour normalisation of its training: it gets that of the data" in caplog.text


def test_reading_weights_draws_no_random_numbers(pretrained: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    by_weights(pretrained)
    assert torch.equal(torch.rand(1), expected)


# Commands


def test_a_run_learns_from_another_run(tmp_path: Path) -> None:
    options = (*MODEL, "target=teacher", "trainer.max_steps=3", "trainer.batch_size=16", "trainer.log_every_steps=1")
    first = go(tmp_path, *MODEL, "trainer.max_steps=1", "trainer.batch_size=16", "run_name=first")
    said = succeed(tmp_path, *options, f"target.weights={first}", "run_name=second", "model.embed_dim=48")
    folder = tmp_path / "runs" / "second"
    assert f"teacher: {first} ({first}), " in said
    found = losses(folder)
    assert sorted(found) == [1, 2, 3]
    assert all(0 < loss < 4 for loss in found.values())
    identity = weights(folder, "task")["teacher"]
    assert identity == by_weights(first).identity
    assert load_model(folder).architecture["out_channels"] == 32
    knn = go(tmp_path, *KNN, "run_name=knn", f"checkpoint={folder}")
    assert status(knn)["state"] == "finished"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": None}, r"target\.model=null needs target\.weights=runs/<name>"),
        ({"weights": "random"}, r"target\.weights=random is neither a file nor a folder: .*target\.pretrained=false"),
        ({"weights": "mlflow:12"}, r"target\.weights=mlflow:12 is neither a file nor a folder: give the run folder"),
        ({"weights": "timm:x", "model": "tiny_plain"}, r"target\.weights=timm:x is neither .* target\.model=<timm's"),
        ({"weights": "/nowhere"}, r"target\.weights=/nowhere does not exist\. docs/targets-and-teachers\.md says"),
    ],
)
def test_sources_that_cannot_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        teacher(**{"model": None, "projection": False, **options})


def test_models_and_weights_that_disagree_are_named(pretrained: Path, tmp_path: Path) -> None:
    own = rf"^target\.weights={pretrained} determines its model, but target\.model=tiny_plain names another: choose "
    with pytest.raises(UserError, match=own + r"target=teacher, or set target\.model=null"):
        by_weights(pretrained, model="tiny_plain")
    path = write(tmp_path / "clip.pth", visual(network(tiny_clip)))
    with pytest.raises(UserError, match=r"not hold the weights of target\.model=tiny_plain \(.*target\.model=null"):
        by_weights(path, model="tiny_plain")
    with pytest.raises(UserError, match=rf"target\.projection=true, but target\.weights={pretrained} has no layer"):
        by_weights(pretrained, projection=True)
    with pytest.raises(UserError, match=rf"^target\.weights={tmp_path} is a folder without checkpoints"):
        by_weights(tmp_path)
    probe = ("task=linprobe", "trainer.max_steps=1", "run_name=probe", f"checkpoint={pretrained}")
    with pytest.raises(UserError, match=r"^target\.weights=.*/probe is of an evaluation, it holds no pretrained"):
        by_weights(go(tmp_path, *MODEL, *probe))
