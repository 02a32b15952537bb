"""The orders: always strict permutations, reproducible, equal to results by hand, and uniform where random."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from semaim import permutations
from semaim.errors import UserError
from semaim.permutations import (
    Attention,
    AttentionCenter,
    AttentionGuided,
    AttentionReversed,
    Center2Out,
    Out2Center,
    Permutation,
    RandomBlobs,
    RandomSquares,
    Raster,
    Stochastic,
    StochasticCenter,
    Zigzag,
    noise_columns,
    square_rings,
)

FIXED = (Raster(), Zigzag())
MAPPED = (Attention(), AttentionReversed(), AttentionGuided(), AttentionCenter())
RANDOM = (
    *(Stochastic(), Center2Out(), Out2Center(), StochasticCenter(), RandomSquares(side=1), RandomBlobs(blobs=3)),
    *MAPPED[2:],
)
ALL = (*FIXED, *RANDOM, *MAPPED[:2])
GRIDS = ((14, 14), (8, 8), (1, 5), (3, 7), (5, 2))

every_order = pytest.mark.parametrize("order", ALL, ids=lambda order: type(order).__name__)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_map(grid: tuple[int, int], batch: int, seed: int = 0) -> Tensor:
    """A map (B, L) whose rows sum to 1."""
    return torch.randn(batch, grid[0] * grid[1], generator=seeded(seed)).softmax(1)


def draw(order: Permutation, grid: tuple[int, int], batch: int, seed: int) -> Tensor:
    map_BL = random_map(grid, batch) if order.needs_map else None
    return order(grid=grid, batch_size=batch, semantic_map_BL=map_BL, generator=seeded(seed))


def peaked_map(grid: tuple[int, int], *peaks: tuple[int, int]) -> Tensor:
    """One map per peak (row, column), with its maximum there."""
    map_BL = torch.zeros(len(peaks), grid[0] * grid[1])
    for row_L, (row, column) in zip(map_BL, peaks, strict=True):
        row_L[row * grid[1] + column] = 1
    return map_BL


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def chi_square_limit(cells: int) -> float:
    """Mean plus four standard deviations of the chi-square distribution; the seeds are fixed, so no test is flaky."""
    return (cells - 1) + 4 * (2 * (cells - 1)) ** 0.5


def test_every_order_is_tested():
    defined = {
        value
        for value in vars(permutations).values()
        if isinstance(value, type) and issubclass(value, Permutation) and value is not Permutation
    }
    assert defined == {type(order) for order in ALL}
    assert {order for order in ALL if order.needs_map} == set(MAPPED)


@every_order
@pytest.mark.parametrize("grid", GRIDS)
def test_a_true_permutation(order, grid):
    order_BL = draw(order, grid, batch=6, seed=0)
    patches = grid[0] * grid[1]
    assert order_BL.shape == (6, patches)
    assert order_BL.dtype == torch.long
    assert torch.equal(order_BL.sort(1).values, torch.arange(patches).expand(6, -1))


@every_order
def test_the_seed_determines_the_order(order):
    first, again, other = (draw(order, (8, 8), batch=3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (order not in RANDOM)
    images_differ = not torch.equal(first[0], first[1])
    assert images_differ == (order not in FIXED)


@every_order
def test_the_global_generator_is_the_default(order):
    map_BL = random_map((4, 4), 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        order_BL = order((4, 4), 2, map_BL)
    assert torch.equal(order_BL, order((4, 4), 2, map_BL, seeded(3)))


@every_order
def test_a_pure_function_of_noise_and_map_image_by_image(order):
    grid = (5, 6)
    noise_BK = torch.rand(8, noise_columns(grid), generator=seeded(1))
    map_BL = random_map(grid, 8) if order.needs_map else None
    whole = order.order(grid, noise_BK, map_BL)
    assert torch.equal(whole, order.order(grid, noise_BK, map_BL))
    maps = (None, None) if map_BL is None else map_BL.split(4)
    halves = [order.order(grid, noise, half) for noise, half in zip(noise_BK.split(4), maps, strict=True)]
    assert torch.equal(torch.cat(halves), whole)

    # Changing all other images does not affect image 0.
    other_noise, other_map = torch.rand(8, noise_columns(grid), generator=seeded(2)), random_map(grid, 8, seed=2)
    other_noise[0] = noise_BK[0]
    if map_BL is not None:
        other_map[0] = map_BL[0]
    changed = order.order(grid, other_noise, other_map if map_BL is not None else None)
    assert torch.equal(changed[0], whole[0])

    # The call equals that function of one draw of uniform noise.
    drawn = torch.rand(8, noise_columns(grid), generator=seeded(9))
    called = order(grid, 8, map_BL, seeded(9))
    assert torch.equal(called, order.order(grid, drawn, map_BL))


def test_raster_and_zigzag_by_hand():
    assert Raster()((3, 4), 1).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert Zigzag()((3, 4), 2).tolist() == [[0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]] * 2


def test_attention_by_hand():
    map_BL = torch.tensor([[0.1, 0.4, 0.2, 0.05, 0.22, 0.03], [0.3, 0.1, 0.0, 0.25, 0.15, 0.2]])
    assert Attention()((2, 3), 2, map_BL).tolist() == [[1, 4, 2, 0, 3, 5], [0, 3, 5, 4, 1, 2]]


def test_attention_descends():
    map_BL = random_map((14, 14), 16)
    order_BL = Attention()((14, 14), 16, map_BL)
    assert (map_BL.gather(1, order_BL).diff(dim=1) <= 0).all()


def test_attention_reversed_by_hand():
    map_BL = torch.tensor([[0.1, 0.4, 0.2, 0.05, 0.22, 0.03], [0.3, 0.1, 0.0, 0.25, 0.15, 0.2]])
    assert AttentionReversed()((2, 3), 2, map_BL).tolist() == [[5, 3, 0, 2, 4, 1], [2, 1, 4, 5, 3, 0]]


def test_squares_follow_each_other():
    # Squares of 2x2 patches on a grid of 4x6: their patches are consecutive, whatever the order of the squares.
    square_L = torch.tensor([0, 0, 1, 1, 2, 2] * 2 + [3, 3, 4, 4, 5, 5] * 2)
    order_BL = RandomSquares(side=2)((4, 6), 6000, None, seeded(0))
    square_BL = square_L[order_BL]
    assert torch.equal(square_BL, square_BL[:, ::4].repeat_interleave(4, 1))
    counts = Counter(tuple(row) for row in square_BL[:, ::4].tolist())
    assert len(counts) == 720  # every order of the 6 squares
    assert chi_square(list(counts.values())) < chi_square_limit(720)
    inside = Counter(tuple(row) for row in order_BL[square_BL[:, 0] == 0][:, :4].tolist())
    assert set(inside) == set(itertools.permutations((0, 1, 6, 7)))
    assert chi_square(list(inside.values())) < chi_square_limit(24)


def test_blobs_are_compact_and_follow_each_other():
    # 10 patches in a row, 4 blobs: of 3, 3, 2 and 2 patches. The first is a random patch and its nearest neighbours.
    order_BL = RandomBlobs(blobs=4)((1, 10), 2000, None, seeded(0))
    first_B3 = order_BL[:, :3].sort(1).values
    assert torch.equal(first_B3.diff(dim=1), torch.ones(2000, 2, dtype=torch.long))
    # The middle of a blob is its centre, but at the border the centre can be the outer patch, too.
    counts = torch.bincount(first_B3[:, 0], minlength=8).tolist()
    expected = torch.tensor([2, 1, 1, 1, 1, 1, 1, 2]) * 200
    assert ((torch.tensor(counts) - expected).abs() < 4 * expected.sqrt()).all()
    # A plane: the first blob of 5 patches around an inner patch is the patch with its four neighbours.
    first_B5 = RandomBlobs(blobs=5)((5, 5), 500, None, seeded(1))[:, :5].sort(1).values
    centres_B = RandomBlobs(blobs=5)((5, 5), 500, None, seeded(1))[:, 0]
    assert torch.bincount(centres_B, minlength=25).min() > 0
    crosses = {(c - 5, c - 1, c, c + 1, c + 5) for c in (6, 7, 8, 11, 12, 13, 16, 17, 18)}
    found = {tuple(row) for row in first_B5.tolist()}
    assert crosses <= found


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            RandomSquares(side=3),
            r"^permutation\.side=3 must divide the 4x6 patches of an image: choose one of \[1, 2\]$",
        ),
        (RandomBlobs(blobs=25), r"^permutation\.blobs=25 must be at most the 24 patches of an image$"),
    ],
)
def test_segments_that_do_not_fit_the_grid_are_refused(order, message):
    with pytest.raises(UserError, match=message):
        order((4, 6), 1)


def test_attention_center_by_hand():
    # 3x3, the most semantic patch at the top left: squared distances 0 1 4 / 1 2 5 / 4 5 8.
    order_L = AttentionCenter()((3, 3), 1, peaked_map((3, 3), (0, 0)), seeded(0))[0].tolist()
    groups = [order_L[0:1], order_L[1:3], order_L[3:4], order_L[4:6], order_L[6:8], order_L[8:9]]
    assert [set(group) for group in groups] == [{0}, {1, 3}, {4}, {2, 6}, {5, 7}, {8}]
    # 2x4, peak at row 1, column 2: squared distances 5 2 1 2 / 4 1 0 1.
    order_L = AttentionCenter()((2, 4), 1, peaked_map((2, 4), (1, 2)), seeded(0))[0].tolist()
    groups = [order_L[0:1], order_L[1:4], order_L[4:6], order_L[6:7], order_L[7:8]]
    assert [set(group) for group in groups] == [{6}, {2, 5, 7}, {1, 3}, {4}, {0}]


def windows(grid: tuple[int, int], *spans: tuple[range, range]) -> Tensor:
    """Rings (L,) from the rows and columns of the windows, innermost first; 3 outside all."""
    ring_hw = torch.full(grid, 3)
    for ring, (rows, columns) in reversed(list(enumerate(spans))):
        ring_hw[rows.start : rows.stop, columns.start : columns.stop] = ring
    return ring_hw.flatten()


INNER, MIDDLE, OUTER = range(6, 8), range(4, 10), range(2, 12)
LOW, HIGH = [range(size) for size in (2, 6, 10)], [range(14 - size, 14) for size in (2, 6, 10)]
# At 4x6 around row 1 and column 4 the windows are 4/7, 12/7 and 20/7 rows by 6/7, 18/7 and 30/7 columns: rows
# [0.71, 1.29), [0.14, 1.86), [0, 2.86) and columns [3.57, 4.43), [2.71, 5.29), [1.71, 6) after shifting the last.
OBLONG = [(range(1, 2), range(4, 5)), (range(1, 2), range(3, 6)), (range(3), range(2, 6))]
RINGS_AROUND_PATCH = [
    ((14, 14), (7, 7), [(INNER, INNER), (MIDDLE, MIDDLE), (OUTER, OUTER)]),
    ((14, 14), (0, 0), list(zip(LOW, LOW, strict=True))),
    ((14, 14), (13, 0), list(zip(HIGH, LOW, strict=True))),
    ((14, 14), (0, 13), list(zip(LOW, HIGH, strict=True))),
    ((14, 14), (13, 13), list(zip(HIGH, HIGH, strict=True))),
    ((14, 14), (12, 4), [(range(11, 13), range(3, 5)), (range(8, 14), range(1, 7)), (range(4, 14), range(10))]),
    ((7, 7), (3, 6), [(range(3, 4), range(6, 7)), (range(2, 5), range(4, 7)), (range(1, 6), range(2, 7))]),
    ((4, 6), (1, 4), OBLONG),
]


@pytest.mark.parametrize(("grid", "centre", "spans"), RINGS_AROUND_PATCH)
def test_rings_around_a_patch_by_hand(grid, centre, spans):
    expected_L = windows(grid, *spans)
    row, column = (torch.tensor([[2 * c]]) for c in centre)
    assert torch.equal(square_rings(grid, row, column)[0], expected_L)
    order_L = AttentionGuided()(grid, 1, peaked_map(grid, centre), seeded(0))[0]
    assert torch.equal(expected_L[order_L], expected_L.sort().values)


@pytest.mark.parametrize(
    ("grid", "spans"),
    [
        ((14, 14), [(INNER, INNER), (MIDDLE, MIDDLE), (OUTER, OUTER)]),
        ((7, 14), [(range(3, 4), INNER), (range(2, 5), MIDDLE), (range(1, 6), OUTER)]),
        # Windows of 8/7, 24/7 and 40/7 around 3.5: [2.93, 4.07), [1.79, 5.21) and [0.64, 6.36).
        ((8, 8), [(range(3, 5),) * 2, (range(2, 6),) * 2, (range(1, 7),) * 2]),
    ],
)
def test_rings_around_the_image_centre_by_hand(grid, spans):
    expected_L = windows(grid, *spans)
    inward_BL, outward_BL = Out2Center()(grid, 4, None, seeded(0)), Center2Out()(grid, 4, None, seeded(0))
    assert torch.equal(expected_L[outward_BL], expected_L.sort().values.expand(4, -1))
    assert torch.equal(expected_L[inward_BL], expected_L.sort(descending=True).values.expand(4, -1))


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (7, 7), (4, 9), (16, 5), (2, 2), (1, 28)])
def test_rings_around_the_image_centre_are_symmetric(grid):
    ring_hw = Center2Out().priority(grid, torch.zeros(1, noise_columns(grid)), None).view(grid)
    assert torch.equal(ring_hw, ring_hw.flip(0))
    assert torch.equal(ring_hw, ring_hw.flip(1))


def test_ties_are_broken_by_every_permutation_equally_often():
    draws, perms = 2400, list(itertools.permutations(range(4)))
    equal_BL, peaks_BL = torch.full((draws, 4), 0.25), peaked_map((3, 3), (1, 1)).expand(draws, -1)
    by_distance_BL = AttentionCenter()((3, 3), draws, peaks_BL, seeded(1))
    assert (by_distance_BL[:, 0] == 4).all()
    ties = {
        "all patches (stochastic)": (Stochastic()((1, 4), draws, None, seeded(0)), (0, 1, 2, 3)),
        "equal similarity": (Attention()((2, 2), draws, equal_BL, seeded(0)), (0, 1, 2, 3)),
        "distance 1": (by_distance_BL[:, 1:5], (1, 3, 5, 7)),
        "distance sqrt 2": (by_distance_BL[:, 5:9], (0, 2, 6, 8)),
    }
    for name, (order_B4, patches) in ties.items():
        counts = Counter(tuple(row) for row in order_B4.tolist())
        assert set(counts) == {tuple(patches[i] for i in perm) for perm in perms}, name
        assert chi_square(list(counts.values())) < chi_square_limit(24), name


def test_stochastic_center_is_uniform_over_patches():
    # At 7x7 the innermost window is one patch, so the first patch of the order is the centre itself.
    draws = 4900
    first_B = StochasticCenter()((7, 7), draws, None, seeded(0))[:, 0]
    counts = torch.bincount(first_B, minlength=49).tolist()
    assert chi_square(counts) < chi_square_limit(49)


def test_stochastic_center_accepts_noise_that_rounds_up_to_one():
    noise_BK = torch.rand(1, 50, generator=seeded(0))
    noise_BK[0, 49] = 1.0
    assert StochasticCenter().order((7, 7), noise_BK)[0, 0] == 48


@pytest.mark.parametrize("order", MAPPED, ids=lambda order: type(order).__name__)
def test_a_missing_map_is_named(order):
    with pytest.raises(UserError, match=rf"{type(order).__name__}.*semantic_map_BL"):
        order((4, 4), 2)


@pytest.mark.parametrize("order", MAPPED, ids=lambda order: type(order).__name__)
@pytest.mark.parametrize("shape", [(2, 15), (3, 16), (2, 4, 4)])
def test_a_map_of_another_shape_is_refused(order, shape):
    with pytest.raises(UserError, match=r"semantic map has shape .*expected \(2, 16\)"):
        order((4, 4), 2, torch.rand(shape))


@pytest.mark.parametrize("shape", [(3,), (2, 15), (3, 16), (2, 4, 4)])
def test_an_order_of_ones_own_with_priorities_of_another_shape_is_refused(shape):
    class Mine(Permutation):
        def priority(self, grid, noise_BK, semantic_map_BL):
            return torch.zeros(shape)

    with pytest.raises(UserError, match=r"^Mine\.priority returned the shape .*, expected \(2, 16\) or \(16,\) "):
        Mine()((4, 4), 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_order
def test_cpu_and_gpu_agree(order):
    noise_BK = torch.rand(64, noise_columns((14, 14)), generator=seeded(0))
    map_BL = random_map((14, 14), 64)
    on_gpu = order.order((14, 14), noise_BK.cuda(), map_BL.cuda())
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), order.order((14, 14), noise_BK, map_BL))
    assert order((14, 14), 64, map_BL.cuda()).is_cuda
