"""Agreement with the authors' code: every number of tests/golden/*.npz, and their orders where these are determined.

The files hold small models, crops of two photographs, and the output of the authors' code (float32, CPU). Other tests
cover the loading of checkpoint files; here the weights go straight into an `AIM`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semaim.permutations import Attention, AttentionCenter, Center2Out, Raster, Zigzag, square_rings
from semaim.semantics import semantic_map
from semaim.targets import Pixels
from support.golden import Golden, golden, relative
from support.paths import GOLDEN_FILES, GOLDEN_PIXELS

GRID = (14, 14)


def orders_of(path: Path) -> list[str]:
    with np.load(path) as arrays:
        return sorted(name.split("/")[0] for name in arrays.files if name.endswith("/order"))


CASES = [pytest.param(path, order, id=f"{path.stem}-{order}") for path in GOLDEN_FILES for order in orders_of(path)]
by_file = pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)


def test_no_golden_file_is_missing():
    assert [path.stem for path in GOLDEN_FILES] == [
        "features_clip",
        "features_dino",
        "pixels_linear_l1_skip",
        "pixels_mlp_l2_norm",
    ]
    assert len(CASES) == 12


@by_file
@torch.no_grad()
def test_encoder_and_semantic_maps(path):
    file = golden(path)
    assert torch.equal(file.own_positions, file.state["pos_embed"])  # bit-identical
    tokens_BND, attention_BL = file.model.encode_with_attention(file.images_BCHW)
    theirs_BND = file["encoder_tokens"]
    assert (tokens_BND - theirs_BND).abs().max() <= 1e-5 * theirs_BND.abs().max()
    assert torch.equal(file.model.encode(file.images_BCHW), tokens_BND)
    assert relative(semantic_map(tokens_BND, "cls"), file["semantic_map/cls"]) <= 1e-5
    assert relative(semantic_map(tokens_BND, "gap"), file["semantic_map/gap"]) <= 1e-5
    assert relative(attention_BL, file["self_attention"]) <= 1e-5


@pytest.mark.parametrize(("path", "name"), CASES)
def test_predictions_losses_and_gradients(path, name):
    file = golden(path)
    file.model.zero_grad()
    prediction_BLP = file.model.predict(file.images_BCHW, file.order(name))
    loss_BL = file.target.loss(prediction_BLP, file.targets())
    loss_BL.mean().backward()
    assert relative(prediction_BLP.norm(dim=-1), file[f"{name}/prediction_norm"]) <= 1e-5
    assert relative(loss_BL, file[f"{name}/loss_per_patch"]) <= 1e-5
    assert relative(loss_BL.mean(), file[f"{name}/loss"]) <= 1e-5

    norms = {key: parameter.grad.norm() for key, parameter in file.model.named_parameters()}
    prefix = f"{name}/grad_norm/"
    assert set(norms) == {key.removeprefix(prefix) for key in file.arrays if key.startswith(prefix)}
    for key, norm in norms.items():
        # A key bias adds the same number to all scores of a query, which softmax ignores: its gradient is zero in exact
        # arithmetic, and both sides hold rounding errors. (In the content stream it is a third of attn.qkv.bias, whose
        # norm is determined by the other two thirds.)
        if not key.startswith("query_blocks.") or not key.endswith("attn.k.bias"):
            assert relative(norm, file[prefix + key]) <= 1e-4, key


def test_blur_is_the_stored_kernel():
    file = golden(GOLDEN_PIXELS)
    assert isinstance(file.target, Pixels)
    impulse_BCHW = torch.zeros(1, 3, 17, 17)
    impulse_BCHW[:, :, 8, 8] = 1
    blurred_BCHW = file.target.blur(impulse_BCHW)
    theirs_C1KK = file.blur_weight
    assert theirs_C1KK.shape == (3, 1, 9, 9)
    assert (blurred_BCHW[0, :, 4:13, 4:13] - theirs_C1KK[:, 0]).abs().max() <= 1e-7
    assert blurred_BCHW.count_nonzero() == 3 * 81


def test_fixed_orders_have_crossed_names():
    file = golden(GOLDEN_PIXELS)
    batch = len(file.images_BCHW)
    assert torch.equal(Raster()(GRID, batch), file.order("zigzag"))
    assert torch.equal(Zigzag()(GRID, batch), file.order("raster"))


def test_attention_order():
    file = golden(GOLDEN_PIXELS)
    map_BL = file["attention/semantic_map_used"]
    assert all(len(row_L.unique()) == 196 for row_L in map_BL)  # no ties: the order is determined
    assert torch.equal(Attention()(GRID, len(map_BL), map_BL), file.order("attention"))


@by_file
@torch.no_grad()
def test_attention_center_follows_the_distance_to_our_argmax(path):
    file = golden(path)
    map_BL = semantic_map(file.model.encode(file.images_BCHW), file.config["attention_type"])
    centre_B1, index_L = map_BL.argmax(1, keepdim=True), torch.arange(196)
    distance_BL = (index_L // 14 - centre_B1 // 14) ** 2 + (index_L % 14 - centre_B1 % 14) ** 2
    theirs_BL = distance_BL.gather(1, file.order("attention_center"))
    assert (theirs_BL.diff(dim=1) >= 0).all()
    ours_BL = distance_BL.gather(1, AttentionCenter()(GRID, len(map_BL), map_BL))
    assert torch.equal(ours_BL, theirs_BL)


def window_start(centre: int, size: int, last: int) -> int:
    """First row of a window of `size` rows around `centre`, shifted to stay inside rows 0..last."""
    return min(max(centre - size // 2, 0), last + 1 - size)


def authors_window_start(centre: int, size: int) -> int:
    """The authors' table: row 13 is in no window, the innermost windows of 2 and 11 are shifted outwards by one row.

    Their centre is never in row 13: its windows are those of row 12.
    """
    off_by_one = {2: 0, 11: 11}
    return off_by_one[centre] if size == 2 and centre in off_by_one else window_start(centre, size, last=12)


def authors_rings(centre: int) -> Tensor:
    """Ring of each patch (L,) around the patch with raster index `centre`, from the authors' table."""
    ring_hw = torch.full(GRID, 3)
    for ring, size in ((2, 10), (1, 6), (0, 2)):
        row, column = (authors_window_start(c, size) for c in divmod(centre, 14))
        ring_hw[row : row + size, column : column + size] = ring
    return ring_hw.flatten()


def stored_rings(file: Golden, name: str) -> Tensor:
    """Rings (B, L) from the authors' priorities: uniform noise minus the number of windows that contain the patch."""
    return file[f"{name}/priority"].floor().long() + 3


def test_center2out_rings():
    file = golden(GOLDEN_PIXELS)
    ours_L = Center2Out().priority(GRID, torch.zeros(1, 197), None)[0]
    assert torch.equal(stored_rings(file, "center2out"), ours_L.expand(3, -1))
    assert (ours_L[file.order("center2out")].diff(dim=1) >= 0).all()


@torch.no_grad()
def test_rings_around_a_patch_are_the_authors_table():
    """The stored rings equal `authors_rings`; the next test states their differences from ours."""
    file = golden(GOLDEN_PIXELS)
    centre_B = semantic_map(file.model.encode(file.images_BCHW), "cls").argmax(1)
    rings_BL = torch.stack([authors_rings(int(centre)) for centre in centre_B])
    assert torch.equal(stored_rings(file, "attention_guided"), rings_BL)
    assert (rings_BL.gather(1, file.order("attention_guided")).diff(dim=1) >= 0).all()

    every_centre_LL = torch.stack([authors_rings(centre) for centre in range(196)])
    for rings_L, order_L in zip(stored_rings(file, "stochastic_center"), file.order("stochastic_center"), strict=True):
        assert (every_centre_LL == rings_L).all(1).any()
        assert (rings_L[order_L].diff() >= 0).all()


def test_our_rings_differ_from_the_authors_only_as_documented():
    index_L = torch.arange(196)
    ours_LL = square_rings(GRID, 2 * (index_L // 14)[:, None], 2 * (index_L % 14)[:, None])
    theirs_LL = torch.stack([authors_rings(centre) for centre in range(196)])
    for centre in range(14):
        # Around patch (centre, centre) the diagonal gives the window along one axis.
        diagonal = ours_LL[15 * centre].view(GRID).diagonal()
        for ring, size in ((0, 2), (1, 6), (2, 10)):
            inside = (diagonal <= ring).nonzero().flatten().tolist()
            start = window_start(centre, size, last=13)
            assert inside == list(range(start, start + size))
            shift = start - authors_window_start(centre, size)
            crosses_13 = centre + size // 2 > 13
            expected = {2: 1, 11: -1}.get(centre, int(crosses_13)) if size == 2 else int(crosses_13)
            assert shift == expected, (centre, size)
    # So the rings are equal if no window of either axis reaches row or column 13 and neither is 2 or 11.
    same = torch.tensor([centre not in (2, 9, 10, 11, 12, 13) for centre in range(14)])
    same_L = same[index_L // 14] & same[index_L % 14]
    assert same_L.sum() == 64
    assert torch.equal(ours_LL[same_L], theirs_LL[same_L])
    assert not (ours_LL[~same_L] == theirs_LL[~same_L]).all(1).any()
    assert torch.equal(theirs_LL[13::14], theirs_LL[12::14])
    assert torch.equal(theirs_LL[13 * 14 :], theirs_LL[12 * 14 : 13 * 14])
    assert (ours_LL != theirs_LL).sum() == 3508  # of 196 * 196: 9.1 %
