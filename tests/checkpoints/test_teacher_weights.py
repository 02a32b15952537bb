"""Teacher weights in every layout give the same tokens as a computation by hand; bad files are reported.

Shapes: B images, N = 1 + L tokens (cls first), D width, P channels after CLIP's projection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semaim.errors import UserError
from semaim.models.vit import weights_checksum
from support.evaluating import surroundings
from support.teaching import (
    CLIP_LAYOUTS,
    COLOURS,
    DINO_LAYOUTS,
    clip_by_hand,
    loaded,
    network,
    teacher,
    text_tower,
    tiny_clip,
    tiny_dino,
    visual,
    write,
)


@pytest.mark.parametrize("layout", DINO_LAYOUTS)
def test_dino_in_every_layout_is_the_same_teacher(layout: str, tmp_path: Path, images: Callable[..., Tensor]) -> None:
    made = network(tiny_dino)
    found = loaded("tiny_dino.here", write(tmp_path / layout, DINO_LAYOUTS[layout](made)), normalization="data")
    assert weights_checksum(found.network) == weights_checksum(made) == found.identity["checksum"]
    assert found.identity["source"] == str(tmp_path / layout)
    images_BCHW = images(2, 16, 16)  # 4x4 patches of 4 pixels: the input of the teacher is 32x32
    resized_BCHW = F.interpolate(images_BCHW, size=(32, 32), mode="bicubic", antialias=True)
    with torch.no_grad():
        assert torch.equal(found.encode(images_BCHW), made.forward_features(resized_BCHW))
    assert found.channels == 24


@pytest.mark.parametrize("layout", CLIP_LAYOUTS)
@pytest.mark.parametrize("half", [False, True])
def test_clip_in_every_layout_is_the_same_teacher(
    layout: str, half: bool, tmp_path: Path, images: Callable[..., Tensor]
) -> None:
    made = network(tiny_clip)
    if half:  # numbers that are exact in half precision, in a half-precision file
        made.load_state_dict({name: value.half().float() for name, value in made.state_dict().items()})
    state = CLIP_LAYOUTS[layout](made)
    if half:
        inner = state.get("state_dict", state)
        inner |= {name: value.half() if value.is_floating_point() else value for name, value in inner.items()}
    found = loaded("tiny_clip.here", write(tmp_path / layout, state), normalization="data", patch_size=8)
    assert weights_checksum(found.network) == weights_checksum(made)
    assert {value.dtype for value in found.network.state_dict().values()} == {torch.float32}
    images_BCHW = images(2, 32, 32)
    with torch.no_grad():
        tokens_BNP, expected_BNP = found.encode(images_BCHW), clip_by_hand(visual(made), images_BCHW)
    assert tokens_BNP.shape == expected_BNP.shape == (2, 17, 20)
    assert (tokens_BNP - expected_BNP).abs().max() <= 1e-5 * expected_BNP.abs().max()
    assert found.channels == 20


def test_weights_of_a_folder_are_used_and_must_be_complete(tmp_path: Path) -> None:
    # timm reads the folder as it reads the hub.
    made = network(tiny_clip)
    timm.models.save_for_hf(made, tmp_path, model_config={"num_classes": 20, **COLOURS})
    found = teacher(f"local-dir:{tmp_path}", projection=True)
    found.load()
    assert found.identity == {
        "model": f"local-dir:{tmp_path}", "source": "folder", "checksum": weights_checksum(made),
    }  # fmt: skip
    state = made.state_dict()
    del state["blocks.0.attn.qkv.weight"]
    write(tmp_path / "model.safetensors", state)
    (tmp_path / "pytorch_model.bin").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"the weights of target.model=local-dir:\S+ cannot be fetched"):
        teacher(f"local-dir:{tmp_path}", projection=True).load()


def test_no_network_names_the_source_of_the_weights(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    caplog.set_level("INFO")
    with pytest.raises(UserError) as caught:
        teacher("vit_base_patch16_224.dino", projection=False).load()
    message = str(caught.value)
    assert message.startswith("the weights of target.model=vit_base_patch16_224.dino cannot be fetched (")
    assert "https://huggingface.co/timm/vit_base_patch16_224.dino" in message
    assert "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth" in message
    assert "target.weights=/path/to/file" in message
    assert "target.pretrained=false" in message
    heard = [record.name for record in caplog.records if not record.name.startswith("timm")]
    assert heard == ["semaim.checkpoints.timm_models"], "who waits is told for what, and once"
    assert "vit_base_patch16_224.dino: fetching its weights from the hub" in caplog.text


def test_random_weights_are_requested_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(3)
    found = teacher(pretrained=False)
    found.load()
    drawn = torch.rand(1)
    again = teacher(pretrained=False)
    torch.manual_seed(3)
    again.load()
    assert torch.equal(drawn, torch.rand(1)), "a teacher takes nothing from the randomness of what comes after"
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert again.identity == found.identity
    assert found.identity["source"] == "random"
    torch.manual_seed(4)
    other = teacher(pretrained=False)
    other.load()
    assert other.identity["checksum"] != found.identity["checksum"]
    with surroundings(tmp_path) as run:
        found.begin(run)
    assert "the teacher tiny_dino.here is RANDOM. Its weights are untrained" in caplog.text


def damaged(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def torchscript(path: Path) -> Path:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    return path


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not be executed",)


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent.pth": (Path.absolute, "does not exist. docs/targets-and-teachers.md says where to get weights"),
    "damaged.pth": (
        lambda path: damaged(write(path, network(tiny_clip).state_dict())),
        "is not a checkpoint, or is damaged",
    ),
    "damaged.safetensors": (
        lambda path: damaged(write(path, network(tiny_clip).state_dict())),
        "is not a safetensors file, or is damaged",
    ),
    "text.safetensors": (lambda path: path.write_text("<html>404"), "is not a safetensors file, or is damaged"),
    "page.pth": (lambda path: path.write_text("<html>404"), "is not a checkpoint, or is damaged"),
    "program.pt": (torchscript, r"(?s)is a TorchScript archive, which is a program .*torch\.jit\.load\('\S+\.pt'"),
    "malicious.pth": (lambda path: torch.save({"model": Runs()}, path), "loading it would run code"),
    "list.pth": (lambda path: torch.save([1], path), "holds a list"),
    "text_tower.pt": (
        lambda path: write(path, text_tower()),
        r"\(it looks like a text encoder; \d+ missing: blocks\.0\.\S+.*unexpected: input_resolution",
    ),
    "empty.pth": (lambda path: write(path, {}), r"missing: blocks\.0\."),
    "incomplete.pth": (
        lambda path: write(path, {n: v for n, v in visual(network(tiny_clip)).items() if "resblocks.1.ln_2" not in n}),
        r"2 missing: blocks\.1\.norm2\.bias, blocks\.1\.norm2\.weight\)",
    ),
    "deeper.pth": (
        lambda path: write(path, visual(network(tiny_clip, depth=3))), r"12 unexpected: blocks\.2\.attn\.proj\.bias, "
    ),
    "wider.pth": (
        lambda path: write(path, visual(network(tiny_clip, embed_dim=32))),
        r"\d+ of another shape: blocks\.0\.attn\.proj\.bias is \(32,\) there and \(24,\) here",
    ),
    "larger_patches.pth": (
        lambda path: write(path, visual(network(tiny_clip, patch_size=16))),
        r"patch_embed\.proj\.weight is \(24, 3, 16, 16\) there and \(24, 3, 8, 8\) here",
    ),
    "larger_images.pth": (
        lambda path: write(path, network(tiny_clip, img_size=64).state_dict()),
        r"1 of another shape: pos_embed is \(1, 65, 24\) there and \(1, 17, 24\) here",
    ),
    "larger_images_of_clip.pth": (
        lambda path: write(path, visual(network(tiny_clip, img_size=64)) | text_tower()),
        r"1 of another shape: pos_embed is \(65, 24\) there and \(1, 17, 24\) here",
    ),
    "other_projection.pth": (
        lambda path: write(path, visual(network(tiny_clip, num_classes=12))),
        r"head\.weight is \(12, 24\) there and \(20, 24\) here",
    ),
    "dino.pth": (lambda path: write(path, network(tiny_dino).state_dict()), r"missing: head\.bias, .*unexpected: "),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", BAD_FILES)
def test_errors_in_a_file_are_reported(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, expected = BAD_FILES[name]
    make(tmp_path / name)
    found = teacher("tiny_clip.here", weights=str(tmp_path / name))
    with pytest.raises(UserError) as caught:
        found.load()
    message = str(caught.value)
    assert message.startswith(f"target.weights={tmp_path / name} ")
    assert re.search(expected, message), message
    if "does not hold the weights" in message:
        assert "Get them on a machine with a network from https://huggingface.co/nobody/tiny_clip" in message
    assert found.identity == {}
    assert "executed" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_printed_command_extracts_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Holder(nn.Module):
        """A module with the same names that TorchScript accepts."""

        def __init__(self) -> None:
            super().__init__()
            self.visual = nn.Linear(2, 2)

    archive = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.script(Holder()), str(archive))
    with pytest.raises(UserError) as caught:
        loaded("tiny_dino.here", archive)
    (code,) = re.findall(r'python -c "(.*)"', str(caught.value))
    exec(code)
    assert set(torch.load("weights.pth", weights_only=True)) == {"visual.weight", "visual.bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "vit_base_patch16_224.nonsense"},
            r"target.model=vit_base_patch16_224.nonsense is not .*Invalid pretr",
        ),
        (
            {"model": "nonsense"},
            r"target.model=nonsense is not a vision transformer of timm that can be a teacher \(Unknown",
        ),
        ({"model": "resnet18"}, r"target.model=resnet18 is not a vision transformer"),
        ({"model": "vit_base_patch16_siglip_224"}, r"target.model=\S+ is not .*teachers have a class token"),
        (
            {"model": "tiny_dino.here", "projection": True},
            "target.projection=true, but target.model=tiny_dino.here has no",
        ),
        ({"normalization": "clip"}, "target.normalization=clip is unknown: choose teacher or data"),
        (
            {"pretrained": False, "weights": "x.pth"},
            "target.pretrained=false is a random teacher, but target.weights=x",
        ),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        teacher(**options)
