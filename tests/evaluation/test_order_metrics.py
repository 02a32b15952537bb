"""Metrics of orders and maps, by hand; on non-square grids; NaN where undefined."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr

from semaim.evaluation.order_metrics import (
    agreement,
    entropy,
    object_in_first_quarter,
    object_in_image,
    order_metrics,
    peak_from_centre,
)
from semaim.permutations import AttentionCenter


def one_hot(patch, patches):
    return torch.nn.functional.one_hot(torch.tensor([patch]), patches).float()


def patches(count, *objects):
    """bool (B, L): the object patches of each image."""
    return torch.tensor([[patch in each for patch in range(count)] for each in objects])


def test_entropy_by_hand():
    map_BL = torch.tensor(
        [
            [0.25, 0.25, 0.25, 0.25],  # log 4 of log 4
            [0.0, 1.0, 0.0, 0.0],
            [0.5, 0.0, 0.0, 0.5],  # log 2 of log 4
            [0.2, 0.0, 0.0, 0.2],  # the same, with a row sum below 1
            [0.5, 0.25, 0.125, 0.125],  # 1.75 bits of 2
        ]
    )
    found_B = entropy(map_BL)
    assert found_B.dtype == torch.float32
    assert found_B.tolist() == pytest.approx([1, 0, 0.5, 0.5, 0.875], abs=1e-7)


@pytest.mark.parametrize(
    ("grid", "patch", "distance"),
    [
        ((3, 5), 7, 0),  # the centre
        ((3, 5), 0, math.sqrt(1 + 4) / (math.sqrt(34) / 2)),
        ((3, 5), 9, 2 / (math.sqrt(34) / 2)),  # row 1, column 4
        ((5, 3), 9, math.sqrt(2) / (math.sqrt(34) / 2)),  # row 3, column 0: one row and one column away
        ((2, 2), 2, 0.5),
        ((1, 4), 3, 1.5 / (math.sqrt(17) / 2)),
    ],
)
def test_distance_of_the_peak_by_hand(grid, patch, distance):
    assert peak_from_centre(one_hot(patch, grid[0] * grid[1]), grid).item() == pytest.approx(distance, abs=1e-6)


def test_distance_of_peaks_all_over_a_square():
    # From the centre of a square of side 1 the mean distance is (sqrt 2 + asinh 1) / 6 = 0.3826.
    found_B = peak_from_centre(torch.eye(32 * 32), (32, 32))
    assert found_B.mean().item() == pytest.approx((math.sqrt(2) + math.asinh(1)) / 6 / math.sqrt(0.5), abs=1e-3)
    assert found_B.max() == pytest.approx(31 / 32)


def test_agreement_by_hand():
    order_BL = torch.tensor([[2, 0, 3, 1]] * 4)
    other_BL = torch.tensor(
        [
            [2, 0, 3, 1],
            [1, 3, 0, 2],  # reversed
            [0, 2, 3, 1],  # two neighbours swapped: 1 - 6 * (1 + 1) / (4 * 15)
            [1, 0, 3, 2],  # first and last: 1 - 6 * (9 + 9) / 60
        ]
    )
    assert agreement(order_BL, other_BL).tolist() == pytest.approx([1, -1, 0.8, -0.8], abs=1e-7)


def test_agreement_is_spearmans():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(5, 15, generator=generator).argsort(1) for _ in range(2))
    expected = [spearmanr(a.argsort(), b.argsort()).statistic for a, b in zip(one, other, strict=True)]
    assert agreement(one, other).tolist() == pytest.approx(expected, abs=1e-6)


def test_object_among_the_first_quarter_by_hand():
    order_BL = torch.tensor([[3, 5, 0, 1, 2, 4, 6, 7]] * 4)
    object_BL = patches(8, {3, 5}, {3, 0}, {6, 7, 1}, set())
    found = object_in_first_quarter(order_BL, object_BL).tolist()
    assert found[:3] == [1, 0.5, 0]  # of the patches 3 and 5
    chance = object_in_image(object_BL).tolist()
    assert chance[:3] == [0.25, 0.25, 0.375]
    assert math.isnan(found[3])  # no object: excluded
    assert math.isnan(chance[3])


@pytest.mark.parametrize(("count", "first"), [(1, 1), (4, 1), (5, 2), (6, 2), (8, 2), (9, 3), (196, 49)])
def test_a_quarter_is_rounded_up(count, first):
    order_BL = torch.arange(count).expand(2, -1)
    inside, beyond = set(range(first)), set(range(first, count))
    object_BL = patches(count, inside, {0} | beyond)
    assert object_in_first_quarter(order_BL, object_BL).tolist() == pytest.approx([1, 1 / first])


def test_all_numbers_of_some_images():
    # 2x4; the map of image 0 peaks at its object in the corner, that of image 1 next to its object; image 2 has none.
    map_BL = torch.tensor([0.05, 0.05, 0.05, 0.65, 0.05, 0.05, 0.05, 0.05]).expand(3, -1)
    object_BL = patches(8, {3, 7, 2}, {0}, set())
    order_BL = AttentionCenter()((2, 4), 3, map_BL)  # 3, then 2 and 7 (distance 1) in random order
    found = order_metrics((2, 4), order_BL, map_BL, object_BL, order_BL)
    assert {name: value_B.shape for name, value_B in found.items()} == dict.fromkeys(
        ("map_entropy", "map_peak_from_centre", "object_in_first_quarter", "object_in_image", "order_agreement"), (3,)
    )
    assert all(value_B.dtype == torch.float32 for value_B in found.values())
    assert found["object_in_first_quarter"][:2].tolist() == [1, 0]
    assert found["object_in_first_quarter"].nanmean() == 0.5
    assert found["object_in_image"].nanmean() == 0.25
    assert found["map_peak_from_centre"].tolist() == pytest.approx([math.sqrt(2.5) / math.sqrt(5)] * 3)
    assert found["map_entropy"].tolist() == pytest.approx(
        [(-0.65 * math.log(0.65) - 0.35 * math.log(0.05)) / math.log(8)] * 3
    )
    assert found["order_agreement"].tolist() == [1, 1, 1]
    assert order_metrics((2, 4), order_BL) == {}
