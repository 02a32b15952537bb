"""Frozen teachers: their inputs, their outputs, and their identity.

Shapes: B images, C colours, L patches, N = 1 + L tokens (cls first), P channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from semaim.core.distributed import Processes
from semaim.errors import UserError
from semaim.models.token_cache import TokenCache
from semaim.runs.context import Run
from semaim.targets import Features
from support.evaluating import together
from support.teaching import (
    COLOURS,
    GREY,
    loaded,
    network,
    teacher,
    tiny_clip,
    tiny_dino,
    visual,
    write,
)


@pytest.fixture
def dino_file(tmp_path: Path) -> Path:
    return write(tmp_path / "dino.pth", network(tiny_dino).state_dict())


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    return write(tmp_path / "clip.pth", visual(network(tiny_clip)))


def test_without_projection_tokens_are_those_after_the_norm(clip_file: Path, images: Callable[..., Tensor]) -> None:
    images_BCHW = images(2, 32, 32)
    plain = loaded("tiny_clip.here", clip_file, projection=False, patch_size=8)
    projected = loaded("tiny_clip.here", clip_file, patch_size=8)
    with torch.no_grad():
        tokens_BND, tokens_BNP = plain.encode(images_BCHW), projected.encode(images_BCHW)
    assert plain.channels == tokens_BND.shape[-1] == 24
    expected_BNP = tokens_BND @ torch.load(clip_file)["visual.proj"]
    assert (tokens_BNP - expected_BNP).abs().max() <= 1e-5 * expected_BNP.abs().max()


def test_colours_use_the_normalisation_of_the_teacher(dino_file: Path) -> None:
    found = loaded("tiny_dino.here", dino_file)
    as_in_files_C = torch.tensor([0.25, 0.5, 0.75])
    normalised_C = (as_in_files_C - torch.tensor(GREY["mean"])) / torch.tensor(GREY["std"])
    expected_C = [(0.25 - 0.4) / 0.2, (0.5 - 0.5) / 0.25, (0.75 - 0.6) / 0.5]
    images_BCHW = normalised_C.view(1, 3, 1, 1).expand(1, 3, 16, 16)
    seen_BCHW = found.teacher_images(images_BCHW)
    assert seen_BCHW.shape == (1, 3, 32, 32)
    for channel, value in enumerate(expected_C):
        assert seen_BCHW[0, channel].flatten().tolist() == pytest.approx([value] * 1024, abs=1e-6)
    as_they_come = loaded("tiny_dino.here", dino_file, normalization="data").teacher_images(images_BCHW)
    assert as_they_come[0, :, 5, 5].tolist() == pytest.approx(normalised_C.tolist(), abs=1e-6)


def test_matching_images_are_unchanged(dino_file: Path, images: Callable[..., Tensor]) -> None:
    images_BCHW = images(2, 24, 40)
    for options in (COLOURS, {"normalization": "data"}):
        found = loaded("tiny_dino.here", dino_file, patch_size=8, **options)
        assert torch.equal(found.teacher_images(images_BCHW), images_BCHW)


@pytest.mark.parametrize(("patch_size", "grid"), [(4, (4, 4)), (4, (3, 5)), (8, (4, 4)), (8, (3, 5)), (16, (2, 3))])
def test_any_grid_gives_a_token_for_each_patch(
    dino_file: Path, images: Callable[..., Tensor], patch_size: int, grid: tuple[int, int]
) -> None:
    found = loaded("tiny_dino.here", dino_file, patch_size=patch_size)
    images_BCHW = images(2, patch_size * grid[0], patch_size * grid[1])
    tokens_BNP, attention_BL = found.encode_with_attention(images_BCHW)
    assert tokens_BNP.shape == (2, 1 + grid[0] * grid[1], 24)
    assert attention_BL.shape == (2, grid[0] * grid[1])
    assert torch.equal(found.encode(images_BCHW), tokens_BNP)
    target_BLP = Features(24)(images_BCHW, TokenCache({"teacher": found}, images_BCHW))
    assert torch.equal(target_BLP, tokens_BNP[:, 1:])


@pytest.mark.parametrize("registers", [0, 2])
def test_attention_is_that_of_the_last_block(images: Callable[..., Tensor], registers: int) -> None:
    made = network(tiny_dino, reg_tokens=registers, qk_norm=True)
    found = teacher(patch_size=8)
    found.network, images_BCHW = made, images(2, 32, 32)
    seen_BCHW = found.teacher_images(images_BCHW)
    whole_BNN = []
    last = made.blocks[-1].attn
    with torch.no_grad():
        tokens_BNP, attention_BL = found.encode_with_attention(images_BCHW)
        assert not last.qkv._forward_hooks
        last.fused_attn = False
        last.attn_drop.register_forward_hook(lambda _module, _inputs, output: whole_BNN.append(output))
        everything_BNP = made.forward_features(seen_BCHW)
    expected_BL = whole_BNN[0][:, :, 0, 1 + registers :].mean(1)
    assert attention_BL.shape == (2, 16)
    assert (attention_BL - expected_BL).abs().max() <= 1e-6
    assert tokens_BNP.shape == (2, 17, 24)
    expected_BNP = torch.cat([everything_BNP[:, :1], everything_BNP[:, 1 + registers :]], 1)
    assert (tokens_BNP - expected_BNP).abs().max() <= 1e-5


def test_a_norm_after_pooling_in_timm_is_applied_to_every_token(images: Callable[..., Tensor]) -> None:
    made = network(tiny_dino, global_pool="avg")
    assert isinstance(made.norm, nn.Identity)
    found = teacher(patch_size=8, normalization="data")
    found.network = made
    with torch.no_grad():
        tokens_BNP = found.encode(images(2, 32, 32))
        expected_BNP = made.fc_norm(made.forward_features(images(2, 32, 32)))
    assert torch.equal(tokens_BNP, expected_BNP)


def test_a_teacher_is_frozen_and_deterministic(dino_file: Path, images: Callable[..., Tensor]) -> None:
    found = loaded("tiny_dino.here", dino_file)
    assert not any(parameter.requires_grad for parameter in found.network.parameters())
    assert not any(module.training for module in found.network.modules())
    images_BCHW = images().requires_grad_()
    passes = TokenCache({"teacher": found}, images_BCHW)
    assert not passes.tokens("teacher").requires_grad
    assert not passes.attention("teacher").requires_grad
    assert torch.equal(found.encode(images_BCHW), found.encode(images_BCHW))


def test_it_computes_in_the_precision_of_the_run(dino_file: Path, images: Callable[..., Tensor]) -> None:
    found, images_BCHW = loaded("tiny_dino.here", dino_file), images()
    seen = []
    found.network.blocks[0].attn.qkv.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    with torch.no_grad():
        exact_BNP = found.encode(images_BCHW)
        with torch.autocast("cpu", torch.bfloat16):
            low_BNP = found.encode(images_BCHW)
    assert seen == [torch.float32, torch.bfloat16]
    assert not torch.equal(low_BNP.float(), exact_BNP)
    assert (low_BNP.float() - exact_BNP).abs().max() <= 0.1 * exact_BNP.abs().max()


@pytest.mark.parametrize("projection", [False, True])
def test_operations_are_what_torch_counts(clip_file: Path, images: Callable[..., Tensor], projection: bool) -> None:
    found = teacher("tiny_clip.here", weights=str(clip_file), projection=projection, normalization="data")
    before = found.flops(15), found.parameters  # known without any weights
    found.load()
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
    ):
        found.encode(images(1, 12, 20))
    assert (counter.get_total_flops(), sum(p.numel() for p in found.network.parameters())) == before


def test_checksums_distinguish_teachers(tmp_path: Path) -> None:
    made = network(tiny_dino)
    one = loaded("tiny_dino.here", write(tmp_path / "one.pth", made.state_dict()))
    with torch.no_grad():
        made.blocks[1].mlp.fc1.weight.view(-1).view(torch.int32)[5] ^= 1  # the last bit of one number
    other = loaded("tiny_dino.here", write(tmp_path / "other.pth", made.state_dict()))
    one.check_same(one.identity | {"source": "elsewhere"})
    with pytest.raises(UserError) as caught:
        one.check_same(other.identity)
    message = str(caught.value)
    for said in (
        one.identity["checksum"][:12],
        other.identity["checksum"][:12],
        "one.pth",
        "other.pth",
        "run_name=...",
    ):
        assert said in message


def test_processes_must_have_the_same_teacher(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{seed}.pth", network(tiny_dino, seed).state_dict()) for seed in (0, 1)]

    def begin(processes: Processes) -> dict[str, str]:
        found = loaded("tiny_dino.here", files[processes.rank % worlds])
        found.begin(Run(None, {}, processes, 0, None, None))  # type: ignore[arg-type]
        return found.identity

    worlds = 1
    one, two = together(2, begin)
    assert one == two
    worlds = 2
    with pytest.raises(
        UserError, match=r"the processes have different weights of target.model=tiny_dino.here, by checksum"
    ):
        together(2, begin)
