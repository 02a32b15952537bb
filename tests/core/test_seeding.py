"""Randomness is a pure function of seed, purpose and position; the state of the global generators can be saved."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from semaim.core.seeding import StepNoise, derive_seed, rng_state, seed_all, seeded, set_rng_state

CPU = torch.device("cpu")


def draw() -> tuple[list[float], list[float], list[float]]:
    """The next numbers of the three global generators, including those from a cached second normal number."""
    return (
        [*torch.rand(3).tolist(), *torch.randn(17).tolist()],
        [random.random(), random.gauss(0, 1), random.gauss(0, 1)],
        [np.random.rand(), np.random.randn(), np.random.randn()],
    )


def test_seeds_equal_those_of_earlier_versions():
    """A change would alter the data order and the augmentation of continued runs."""
    assert derive_seed(0, "order", 0) == 6230928577095065118
    assert derive_seed(7, "augmentation", 3, 11) == 7415987739187540692
    assert derive_seed(0, "shuffle") == 2832207294378337202


def test_seeds_differ_by_seed_purpose_and_position():
    keys = [(seed, purpose, *where) for seed in (0, 1, 2**31) for purpose in ("order", "shuffle", "augmentation")
            for where in [(), (1,), (2,), (1, 2), (2, 1), (1, 1), (2**33,)]]  # fmt: skip
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) == 63
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "order", 5) == derive_seed(0, "order", 5)


def test_seeded_decides_the_numbers():
    with seeded(5):
        first = draw()
    with seeded(5):
        assert draw() == first
    with seeded(6):
        assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_seed_all_decides_the_numbers():
    with seeded(0):  # restores all generators
        seed_all(2**40 + 5)
        first = draw()
        seed_all(2**40 + 5)
        assert draw() == first
        seed_all(2**40 + 6)
        assert all(a != b for a, b in zip(draw(), first, strict=True))


def half_used() -> None:
    """Leave each generator in an intermediate state: python and numpy hold a second normal number."""
    draw()
    random.gauss(0, 1), np.random.randn()
    assert np.random.get_state()[3] == 1


def test_seeded_restores_the_generators():
    with seeded(3):
        half_used()
        expected = draw()
    with seeded(3):
        half_used()
        with seeded(derive_seed(1, "augmentation", 2)):
            draw()
        assert draw() == expected  # as if nothing had been drawn inside


def fail() -> None:
    with seeded(5):
        draw()
        raise KeyError


def test_seeded_restores_the_generators_after_an_error():
    with seeded(3):
        expected = draw()
    with seeded(3):
        with pytest.raises(KeyError):
            fail()
        assert draw() == expected


@pytest.mark.parametrize("parts", [[12], [6, 6], [3, 3, 3, 3], [1, 4, 7]])
def test_step_noise_of_an_image_is_independent_of_the_split(parts):
    whole = StepNoise(seed=4, step=9, batch_size=12).rows(0, 12, 5, CPU)
    assert whole.shape == (12, 5)
    assert whole.min() >= 0
    assert whole.max() < 1
    assert len(whole.flatten().unique()) == 60
    together, noise, first = [], StepNoise(4, 9, 12), 0
    for count in parts:
        fresh = StepNoise(4, 9, 12).rows(first, count, 5, CPU)  # on another process
        assert torch.equal(noise.rows(first, count, 5, CPU), fresh)  # the next micro-batch of this one
        together.append(fresh)
        first += count
    assert torch.equal(torch.cat(together), whole)


def test_step_noise_differs_by_step_and_seed_without_using_the_global_generator():
    torch_state = torch.get_rng_state()
    rows = [StepNoise(seed, step, 2).rows(0, 2, 3, CPU) for seed, step in [(0, 0), (0, 1), (1, 0)]]
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_rng_state_survives_a_weights_only_file(tmp_path):
    with seeded(8):
        torch.randn(3), random.gauss(0, 1), np.random.randn()  # python and numpy now hold a second normal number
        assert np.random.get_state()[3] == 1
        torch.save({"rng": rng_state(CPU)}, tmp_path / "state.pt")
        expected = [draw(), draw()]
    with seeded(99):
        draw()
        state = torch.load(tmp_path / "state.pt", weights_only=True)["rng"]
        set_rng_state(state, CPU)
        assert [draw(), draw()] == expected
        set_rng_state(state, CPU)  # reading does not consume it
        assert draw() == expected[0]


def test_rng_state_in_the_middle_of_the_mersenne_twister():
    """The state includes the position inside the block of 624 words."""
    with seeded(8):
        np.random.rand(100), [random.random() for _ in range(100)]
        state = rng_state(CPU)
        expected = draw()
    assert state["numpy"][2] == 200  # two words per double
    assert state["cuda"] is None
    with seeded(8):
        assert draw() != expected
        set_rng_state(state, CPU)
        assert draw() == expected
