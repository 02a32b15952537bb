"""Files without an encoder, and options that do not fit a checkpoint, are refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from semaim.checkpoints.pretrained import load_model
from semaim.errors import UserError
from support import foreign_files
from support.commands import run
from support.encoders import MODEL, SMALL_RUN, source
from support.foreign_layouts import TIMM_SIZES, saved, zeros
from support.in_process import go


def broken(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Files without an encoder, and the message about each."""
    plain = foreign_files.timm_plain().content
    contents = {
        "resnet": timm.create_model("test_resnet").state_dict(),
        "text_tower": zeros(*foreign_files.TEXT),
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
        "resnet.pth": r"holds no supported vision transformer \(it looks like a ResNet\): bn1\.bias",
        "text_tower.pth": r"holds no supported vision transformer \(it looks like a text encoder\): ln_final",
        "numbers.pth": r"holds no supported vision transformer: no weights",
        "missing.pth": r"\(1 missing: blocks\.1\.mlp\.fc2\.weight\)",
        "no_positions.pth": r"looks like ViT, but its sizes cannot be inferred: 'pos_embed'",
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
        commands = 1 if name == "program.pth" else 0  # printed commands, each on its own line
        assert str(raised.value).count("\n") == commands


def test_a_folder_that_does_not_fit_its_configuration(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **TIMM_SIZES)
    timm.models.save_for_hf(model, tmp_path, model_args=TIMM_SIZES, safe_serialization=True)
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
        done = run(tmp_path, "task=knn", *MODEL, f"checkpoint={path}")
        assert done.returncode == 2
        (line,) = (each for each in done.stdout.strip().splitlines() if "has no effect" not in each)
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
    for make, message in (
        (
            foreign_files.dino_backbone,
            r"holds an encoder without what predicts patches .*evaluations",
        ),
        (
            foreign_files.simmim,
            r"is not a pretraining checkpoint of semaim, SemAIM, SAIM or MAE: .*evaluations",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load_model(saved(make(), tmp_path))


def test_options_that_do_not_go_with_a_checkpoint(tmp_path: Path) -> None:
    path = saved(foreign_files.timm_plain(), tmp_path)
    architecture = "task.source.architecture=vit_base_patch16_224"
    with pytest.raises(UserError, match=r"is not from a run of semaim, so it holds no moving average"):
        source(path, "task.source.ema=true").encoder()
    for given in ("random", "timm:vit_tiny_patch16_224"):
        with pytest.raises(
            Exception, match=rf"architecture=vit_base_patch16_224, but checkpoint={given} defines its architecture"
        ):
            source(given, architecture)
    begun = go(tmp_path, *SMALL_RUN, "run_name=begun")
    with pytest.raises(UserError, match=r"is for files of other projects, not checkpoint="):
        source(begun, architecture).encoder()
    with pytest.raises(UserError, match=r"does not fit vit_of_nobody \(RuntimeError: Unknown model"):
        source(path, "task.source.architecture=vit_of_nobody").encoder()
