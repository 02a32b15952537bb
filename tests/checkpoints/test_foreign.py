"""Encoders of other projects compute what the projects' models compute, from files in the projects' own layouts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from safetensors.torch import save_file
from timm.models import beit as timm_beit
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from semaim.checkpoints.encoder_source import EncoderSource, fingerprint
from semaim.checkpoints.formats import LAYOUTS
from semaim.checkpoints.two_stream import load_model
from semaim.errors import UserError
from semaim.models.vit import encode
from support import foreign_files
from support.commands import RUN, journal, run, status, succeed
from support.foreign_files import FAMILIES, File, randomised
from support.in_process import composed, go

DATA = ("tracking=none", "data.patch_size=8", "model.embed_dim=32", "model.num_heads=2")
SMALL_RUN = (*DATA, "task.online_knn=null", "trainer.max_steps=1", "trainer.batch_size=16")


def source(given: Path | str, *overrides: str) -> EncoderSource:
    """The encoder of a command line."""
    cfg = composed(*DATA, "task=knn", f"checkpoint='{given}'", "run_name=x", *overrides)
    return instantiate(cfg.task.source, _convert_="all")


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def saved(file: File, folder: Path) -> Path:
    torch.save(file.content, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged here."""
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
    """It is said where it is known and differs from that of the data."""
    file = make()
    path, warning = saved(file, tmp_path), "was made for images normalised otherwise than these data's"
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


def test_what_weights_do_not_tell_is_said(tmp_path: Path, messages) -> None:
    path = saved(foreign_files.clip_open_clip(), tmp_path)
    gelu = source(path).encoder()
    assert "taking GELU" in messages.text
    messages.clear()
    quick = source(path, "task.source.architecture=vit_base_patch16_clip_quickgelu_224").encoder()
    assert "taking GELU" not in messages.text
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


def test_half_precision_is_made_whole(tmp_path: Path) -> None:
    """OpenAI's files hold numbers of two bytes."""
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
    with pytest.raises(UserError, match=r"weights\.pth has 2 attention heads, not 4"):  # BEiT's tables tell
        source(saved(foreign_files.beit(), tmp_path), "task.source.num_heads=4").encoder()


@torch.no_grad()
def test_an_odd_width_of_the_mlp(tmp_path: Path) -> None:
    """Products of floating-point numbers must not lose a neuron."""
    for hidden in (1, 33, 43, 57, 86, 117, 172):
        model = timm.create_model("vit_tiny_patch16_224", **foreign_files.TIMM_SIZES, mlp_ratio=(hidden + 0.5) / 32)
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
    """Bit for bit what timm loads into a model of that size."""
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
    """Sine-cosine ones of a grid that is not square become those of a finer one: nearly what they would be there."""
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


def test_another_grid_must_be_asked_for(tmp_path: Path) -> None:
    path = saved(foreign_files.dinov2(), tmp_path)
    with pytest.raises(Exception, match=r"task\.source\.interpolate=true") as raised:
        go(tmp_path, *DATA, "task=knn", f"checkpoint={path}", "data.image_size=48", "run_name=knn")
    assert "is for images of 32x32, the data are of 48x48" in str(raised.value.__cause__)
    with pytest.raises(UserError, match=r"data\.image_size=36x36 is not divisible by the encoder's patches of 8x8"):
        source(path, "task.source.interpolate=true", "data.image_size=36", "data.patch_size=4").encoder()


# Classifiers


@pytest.fixture(scope="module")
def mae_classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """As MAE's fine-tuning saves it, with the mean of the patches normed; and the model."""
    model = randomised(timm.create_model("vit_tiny_patch16_224", **foreign_files.TIMM_SIZES, num_classes=10,
                                         global_pool="avg"))  # fmt: skip
    path = tmp_path_factory.mktemp("mae") / "mae_finetuned.pth"
    torch.save({"model": model.state_dict(), "optimizer": {}, "epoch": 99}, path)
    return path, model


@torch.no_grad()
def test_a_fine_tuned_encoder(mae_classifier: tuple[Path, torch.nn.Module]) -> None:
    path, model = mae_classifier
    found = encode(source(path).encoder(), images())
    tokens_BND = model.forward_features(images())
    assert torch.equal(found["mean"], model.fc_norm(tokens_BND[:, 1:].mean(1)))
    assert torch.equal(found["cls"], model.fc_norm(tokens_BND[:, 0]))
    trained = source(path).trained_classifier(10)
    assert not trained.training
    assert torch.equal(trained(images()), model(images()))
    with pytest.raises(UserError, match=r"was fine-tuned for 10 classes, the data have 9"):
        source(path).trained_classifier(9)


@torch.no_grad()
def test_a_classifier_of_transformers(tmp_path: Path) -> None:
    file = foreign_files.huggingface_vit()
    found = source(saved(file, tmp_path)).trained_classifier(5)
    expected_BC = file.tokens(images())[:, 0] @ file.content["classifier.weight"].T + file.content["classifier.bias"]
    assert torch.allclose(found(images()), expected_BC, rtol=1e-4, atol=1e-4)


def test_an_encoder_without_a_head_has_none_to_measure(tmp_path: Path) -> None:
    for make in (foreign_files.mae_encoder, foreign_files.clip_open_clip, foreign_files.dino_whole):
        with pytest.raises(UserError, match=r"has no trained head, so there is nothing to evaluate"):
            source(saved(make(), tmp_path)).trained_classifier(16)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(
    "make",
    [
        foreign_files.beit,
        foreign_files.dinov2_registers_swiglu,
        foreign_files.clip_openai,
        foreign_files.mae_pretrained,
    ],
    ids=lambda make: make.__name__,
)
def test_fine_tuned_here_and_measured_again(make: Callable[[], File], pool: str, tmp_path: Path) -> None:
    """From our own checkpoint, which describes the model in plain data: the file is away by then."""
    file = make()
    path = saved(file, tmp_path)
    tune = ("task=finetune", f"task.pool={pool}", "trainer.max_steps=1", "trainer.batch_size=16", "run_name=tuned")
    resized = ("task.source.interpolate=true", "data.image_size=16")
    before = source(path, *resized).encoder().state_dict()
    folder = go(tmp_path, *DATA, *tune, *resized, f"checkpoint={path}")
    path.unlink()
    (kept,) = (folder / "checkpoints").glob("*.pt")
    state = torch.load(kept, weights_only=True)
    new = {"head.weight", "head.bias"} | ({"fc_norm.weight", "fc_norm.bias"} if pool == "mean" else set())
    assert state["model"].keys() - before.keys() == new
    for name, value in state["model"].items():  # the warm-up's first learning rate is 0
        assert name in new or torch.equal(value, before[name]), name
    alone = ("task=finetune", "task.eval_only=true", "run_name=alone", f"checkpoint={folder}", "data.image_size=16")
    assert status(go(tmp_path, *DATA, *alone))["result"]["finetune"] == status(folder)["result"]["finetune"]
    with pytest.raises(UserError, match=r"is fine-tuned already"):
        source(folder, "data.image_size=16").classifier(10, "mean", 0.1)


def test_a_classifier_of_another_project_is_fine_tuned_anew(mae_classifier: tuple[Path, torch.nn.Module]) -> None:
    path, model = mae_classifier
    again = source(path).classifier(10, "mean", 0.1)
    assert torch.equal(again.fc_norm.weight, model.fc_norm.weight)
    assert torch.equal(again.blocks[2].mlp.fc2.weight, model.blocks[2].mlp.fc2.weight)
    assert again.head.weight.std() < 1e-4
    by_cls = source(path).classifier(7, "cls", 0.0)
    assert torch.equal(by_cls.norm.weight, torch.ones(32))


# Folders of timm's


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
    """Its config.json says what the weights do not, of any of timm's vision transformers."""
    sizes = {**foreign_files.TIMM_SIZES, "num_heads": 4} | more  # not the heads that the width tells
    model = randomised(timm.create_model(name, **sizes))
    timm.models.save_for_hf(model, tmp_path / "folder", model_args=sizes, safe_serialization=True)
    for given in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
        found = source(given).encoder()
        assert found.blocks[0].attn.num_heads == 4
        assert torch.equal(found.forward_features(images()), model.forward_features(images()))
    if more["num_classes"]:
        assert torch.equal(source(tmp_path / "folder").trained_classifier(10)(images()), model(images()))
    with pytest.raises(UserError, match=r"the config\.json of checkpoint=.* says what it is"):
        source(tmp_path / "folder", "task.source.num_heads=2").encoder()


def test_a_folder_that_timm_was_given_may_go_away(tmp_path: Path) -> None:
    """A fine-tuned run builds its model without the folder that its encoder came from."""
    model = randomised(timm.create_model("vit_tiny_patch16_224", **foreign_files.TIMM_SIZES, num_classes=3))
    timm.models.save_for_hf(model, tmp_path / "folder", model_args=foreign_files.TIMM_SIZES, safe_serialization=True)
    options = ("task=finetune", "trainer.max_steps=1", "trainer.batch_size=16", "run_name=tuned")
    folder = go(tmp_path, *DATA, *options, f"checkpoint='timm:local-dir:{tmp_path / 'folder'}'")
    (tmp_path / "folder").rename(tmp_path / "away")
    assert source(folder).trained_classifier(10)(images()).shape == (2, 10)


# The commands


def test_an_encoder_is_evaluated_by_the_command(tmp_path: Path) -> None:
    """What it prints, its result in the journal, and features that are found again."""
    path = saved(foreign_files.dinov2_registers(), tmp_path)
    options = ("task=knn", *DATA, f"checkpoint={path}", "task.ks=[10]", "task.source.interpolate=true")
    said = succeed(tmp_path, *options, "run_name=knn", "data.image_size=24")
    assert "DINOv2, width 32, 3 blocks, 2 heads, images of 32x32 in patches of 8; 49 weights taken" in said
    assert "left out: mask token (1 weight)" in said
    assert "positions of 32x32 pixels are resampled to 24x24" in said
    result = status(tmp_path / "runs" / "knn")["result"]
    assert set(result) == {"knn_10_cls", "knn_10_mean"}
    assert result["knn_10_mean"] > 30
    tags = [line["tags"] for line in journal(tmp_path / "runs" / "knn") if "tags" in line]
    assert {"pretrained.run": str(path)} in tags
    again = succeed(tmp_path, *options, "run_name=again", "data.image_size=24")
    assert "features were computed before" in again
    assert status(tmp_path / "runs" / "again")["result"] == result
    assert succeed(tmp_path, *options, launcher=(*RUN[:2], "semaim.preflight.check")).endswith(" GPU-hours\n")


@pytest.mark.parametrize("task", ["linprobe", "fewshot", "features"])
def test_other_evaluations(task: str, tmp_path: Path) -> None:
    short = {
        "linprobe": ("trainer.max_steps=1", "task.features=[mean]"),
        "fewshot": ("task.shots=[1]", "task.repeats=1", "trainer.epochs=1", "task.features_dir=null"),
        "features": (),
    }
    path = saved(foreign_files.beit(), tmp_path)
    folder = go(tmp_path, *DATA, f"task={task}", *short[task], f"checkpoint={path}", f"run_name={task}")
    assert status(folder)["state"] == "finished"


# Refusals


def broken(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Files that hold no encoder, and what is said of each."""
    plain = foreign_files.timm_plain().content
    contents = {
        "resnet": timm.create_model("test_resnet").state_dict(),
        "text_tower": foreign_files.zeros(*foreign_files.TEXT),
        "numbers": {"epoch": 1},
        "missing": {name: value for name, value in plain.items() if name != "blocks.1.mlp.fc2.weight"},
        "no_positions": {name: value for name, value in plain.items() if name != "pos_embed"},
        "more": plain | {"blocks.0.attn.gate.weight": torch.zeros(32)},
        "oblong": plain | {"pos_embed": torch.zeros(1, 1 + 12, 32)},
        "misshapen": plain | {"blocks.2.norm1.weight": torch.zeros(31)},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
    torch.save({"model": plain, "hook": print}, tmp_path / "code.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pth")
    whole = tmp_path / "whole.safetensors"
    save_file(plain, whole)
    (tmp_path / "torn.safetensors").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    messages = {
        "resnet.pth": r"holds no vision transformer that semaim knows \(it looks like a ResNet\): bn1\.bias",
        "text_tower.pth": r"holds no vision transformer that semaim knows \(it looks like a text encoder\): ln_final",
        "numbers.pth": r"holds no vision transformer that semaim knows: no weights",
        "missing.pth": r"\(1 missing: blocks\.1\.mlp\.fc2\.weight\)",
        "no_positions.pth": r"looks like ViT, but its sizes cannot be told: 'pos_embed'",
        "more.pth": r"\(1 unexpected: blocks\.0\.attn\.gate\.weight\)",
        "oblong.pth": r"has positions for 12 patches: not square\. Give a folder",
        "misshapen.pth": r"\(1 of another shape: blocks\.2\.norm1\.weight is \(31,\) there and \(32,\) here\)",
        "code.pth": r"was not loaded: .*would run code",
        "program.pth": r"was not loaded: it is a TorchScript archive, which is a program",
        "torn.safetensors": r"is not a safetensors file, or is damaged \(.+\)",
        "noise.safetensors": r"is not a safetensors file, or is damaged \(.+\)",
        "nowhere.pth": r"does not exist",
    }
    return {name: (tmp_path / name, message) for name, message in messages.items()}


def test_files_that_hold_no_encoder(tmp_path: Path) -> None:
    for name, (path, message) in broken(tmp_path).items():
        with pytest.raises(UserError, match=rf"^checkpoint={path} .*{message}") as raised:
            source(path).encoder()
        commands = 1 if name == "program.pth" else 0  # to type, on a line of its own
        assert str(raised.value).count("\n") == commands


def test_a_folder_that_does_not_fit_its_configuration(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **foreign_files.TIMM_SIZES)
    timm.models.save_for_hf(model, tmp_path, model_args=foreign_files.TIMM_SIZES, safe_serialization=True)
    config = (tmp_path / "config.json").read_text()
    for changed, message in (
        (config.replace('"depth": 3', '"depth": 4'), r"is of another architecture than the model \(12 missing"),
        (config.replace('"depth": 3', '"legs": 3'), r"does not fit vit_tiny_patch16_224 \(TypeError: .*legs"),
        (config.replace("vit_tiny_patch16_224", "vit_of_nobody"), r"does not fit vit_of_nobody \(RuntimeError"),
        (config.replace("vit_tiny_patch16_224", "resnet18"), r"does not fit resnet18 \(TypeError"),
        (config[:40], r"config\.json is damaged"),
    ):
        (tmp_path / "config.json").write_text(changed)
        with pytest.raises(UserError, match=message):
            source(tmp_path).encoder()


def test_a_mistake_ends_the_command_with_one_message(tmp_path: Path) -> None:
    for name in ("text_tower.pth", "torn.safetensors"):
        path, message = broken(tmp_path)[name]
        done = run(tmp_path, "task=knn", *DATA, f"checkpoint={path}")
        assert done.returncode == 2
        (line,) = done.stdout.strip().splitlines()
        assert re.match(rf"error: checkpoint={path} {message}", line)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options", [("model.embed_dim=64",), ("data.patch_size=4",)])
def test_pretraining_does_not_start_from_weights_of_another_shape(options: tuple[str, ...], tmp_path: Path) -> None:
    begun = go(tmp_path, *SMALL_RUN, "run_name=begun")
    with pytest.raises(Exception, match=r"is of another architecture than the model \(.*of another shape") as raised:
        go(tmp_path, *SMALL_RUN, *options, f"checkpoint={begun}", "run_name=next")
    assert isinstance(raised.value.__cause__, UserError)
    assert not (tmp_path / "next").exists()


def test_pretraining_does_not_start_from_another_project(tmp_path: Path) -> None:
    path = saved(foreign_files.mae_pretrained(), tmp_path)
    with pytest.raises(UserError, match=r"is not a pretraining checkpoint of semaim, SemAIM or SAIM: .*evaluations"):
        load_model(path)


def test_options_that_do_not_go_with_a_checkpoint(tmp_path: Path) -> None:
    path = saved(foreign_files.timm_plain(), tmp_path)
    architecture = "task.source.architecture=vit_base_patch16_224"
    with pytest.raises(UserError, match=r"is not from a run of semaim, so it holds no moving average"):
        source(path, "task.source.ema=true").encoder()
    for given in ("random", "timm:vit_tiny_patch16_224"):
        with pytest.raises(
            Exception, match=rf"architecture=vit_base_patch16_224, but checkpoint={given} says what it is"
        ):
            source(given, architecture)
    begun = go(tmp_path, *SMALL_RUN, "run_name=begun")
    with pytest.raises(UserError, match=r"is for files of other projects, not checkpoint="):
        source(begun, architecture).encoder()
    with pytest.raises(UserError, match=r"does not fit vit_of_nobody \(RuntimeError: Unknown model"):
        source(path, "task.source.architecture=vit_of_nobody").encoder()
