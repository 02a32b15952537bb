"""Images and augmentation of a step depend on seed and step alone; training tolerates unreadable images."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from semaim.data import workers as loading_workers
from semaim.data.image_sets import ArrayImages
from semaim.data.loading import (
    EvaluationImages,
    Item,
    StepPlan,
    TrainingImages,
    evaluation_batches,
    training_batches,
)
from semaim.data.transforms import evaluation, pretraining
from semaim.errors import UserError
from support.loaders import loading


def indices(plan, step):
    return [item.index for items in plan.micro_batches(step) for item in items]


def noise_images(count=40, side=12):
    rng = np.random.default_rng(0)
    return ArrayImages(rng.integers(0, 256, (count, side, side, 3)), [i % 7 for i in range(count)], "noise")


def training(seed=3, count=40):
    return TrainingImages(noise_images(count), pretraining(8), seed)


# Step plan


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)])
def test_images_of_a_step_do_not_depend_on_its_split(world, accumulate):
    whole = StepPlan(dataset_size=50, batch_size=16, seed=5)
    for step in (0, 2, 3, 100):  # steps 2 and 3 are of different epochs
        (expected,) = whole.micro_batches(step)
        assert [item.row for item in expected] == list(range(16))
        parts = [StepPlan(50, 16, 5, rank, world, accumulate).micro_batches(step) for rank in range(world)]
        assert all(len(micro_batches) == accumulate for micro_batches in parts)
        # Micro-batches in sequence, within each the processes in sequence: in row order.
        together = [item for micro in range(accumulate) for rank in range(world) for item in parts[rank][micro]]
        assert together == expected
        assert {len(items) for part in parts for items in part} == {16 // (world * accumulate)}


@pytest.mark.parametrize(("size", "batch"), [(48, 8), (50, 8), (7, 7), (1437, 64)])
def test_an_epoch_contains_each_image_at_most_once(size, batch):
    plan = StepPlan(size, batch, seed=1)
    assert plan.steps_per_epoch == size // batch
    epochs = []
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        items = [item for step in steps for item in plan.micro_batches(step)[0]]
        seen = [item.index for item in items]
        assert {item.epoch for item in items} == {epoch}
        assert len(seen) == len(set(seen)) == size - size % batch
        assert set(seen) <= set(range(size))
        if size % batch == 0:
            assert sorted(seen) == list(range(size))
        assert seen != sorted(seen)
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_different_images_are_omitted_in_each_epoch():
    plan = StepPlan(dataset_size=11, batch_size=4, seed=0)
    missing = [set(range(11)) - set(indices(plan, 2 * e) + indices(plan, 2 * e + 1)) for e in range(30)]
    assert all(len(left) == 3 for left in missing)
    assert set.union(*missing) == set(range(11))


def test_the_plan_is_a_pure_function_of_seed_and_step():
    forwards = [indices(StepPlan(40, 8, seed=2), step) for step in range(20)]
    plan = StepPlan(40, 8, seed=2)
    torch.manual_seed(1)
    assert [indices(plan, step) for step in reversed(range(20))] == forwards[::-1]
    torch.manual_seed(2)
    assert indices(StepPlan(40, 8, seed=2), 13) == forwards[13]
    assert [indices(StepPlan(40, 8, seed=3), step) for step in range(20)] != forwards


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"batch_size": 41},
            r"trainer\.batch_size=41 is more than the 40 training images",
        ),
        ({"batch_size": 0}, r"trainer\.batch_size=0 must be at least 1"),
        ({"batch_size": 10, "world_size": 4}, r"batch_size=10 must be divisible by .* 4 x 1"),
        ({"batch_size": 12, "world_size": 2, "accumulate": 4}, r"trainer\.accumulate = 2 x 4"),
    ],
)
def test_batches_that_cannot_be_made_are_named(sizes, message):
    with pytest.raises(UserError, match=message):
        StepPlan(dataset_size=40, seed=0, **sizes)


# Images


def global_states():
    return torch.get_rng_state().tolist(), random.getstate(), [str(part) for part in np.random.get_state()]


def test_augmentation_depends_on_seed_epoch_and_image_alone():
    dataset, item = training(), Item(index=5, epoch=2, row=9)
    sample = dataset[item]
    assert (sample.label, sample.index, sample.row, sample.unreadable) == (5, 5, 9, [])
    for seed in (0, 1):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        dataset[Item(index=seed, epoch=seed, row=0)]  # another image in between
        before = global_states()
        assert torch.equal(dataset[item].image, sample.image)
        assert global_states() == before
    assert torch.equal(dataset[Item(5, 2, 0)].image, sample.image)  # the position in the batch does not matter
    others = [dataset[Item(5, epoch, 9)].image for epoch in (0, 1, 3)] + [training(seed=4)[item].image]
    for number, other in enumerate(others):
        assert not any(torch.equal(other, one) for one in [sample.image, *others[:number]])


def test_images_of_one_epoch_are_cropped_each_in_its_own_way():
    """All images are identical, so only the augmentation differs."""
    same = ArrayImages(np.tile(noise_images(1).images_NHWC, (20, 1, 1, 1)), [0] * 20, "same")
    crops = [TrainingImages(same, pretraining(8), 0)[Item(i, 0, 0)].image.sum().item() for i in range(20)]
    assert len(set(crops)) == 20


def assert_equal_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.images_BCHW, b.images_BCHW)
        assert torch.equal(a.labels_B, b.labels_B)
        assert torch.equal(a.index_B, b.index_B)
        assert a.first_row == b.first_row


@pytest.mark.parametrize("accumulate", [1, 2])
def test_any_number_of_workers_from_any_step_gives_the_same_batches(accumulate):
    plan = StepPlan(dataset_size=40, batch_size=8, seed=3, accumulate=accumulate)
    from_the_start = list(training_batches(training(), plan, range(12), *loading(0)))
    expected = from_the_start[7 * accumulate :]
    assert len(expected) == 5 * accumulate  # steps 7 to 11 are in epochs 1 and 2
    for workers in (0, 2):
        torch.manual_seed(workers)
        before = global_states()
        batches = list(training_batches(training(), plan, range(7, 12), *loading(workers)))
        assert global_states() == before
        assert_equal_batches(batches, expected)
    assert [batch.first_row for batch in expected[:2]] == ([0, 0] if accumulate == 1 else [0, 4])
    assert expected[0].images_BCHW.shape == (8 // accumulate, 3, 8, 8)
    assert expected[0].index_B.tolist() + (expected[1].index_B.tolist() if accumulate == 2 else []) == indices(plan, 7)


def test_processes_together_load_what_one_would():
    dataset = training()
    (whole,) = training_batches(dataset, StepPlan(40, 8, 3), range(6, 7), *loading(0))
    parts = [
        next(training_batches(dataset, StepPlan(40, 8, 3, rank, 2), range(6, 7), *loading(0))) for rank in range(2)
    ]
    assert torch.equal(torch.cat([part.images_BCHW for part in parts]), whole.images_BCHW)
    assert [part.first_row for part in parts] == [0, 4]


class WorkerReport(TrainingImages):
    """Returns the blocked signals and the number of threads of its process, in place of unreadable images."""

    def __getitem__(self, item):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, set())
        report = [("blocked", " ".join(sorted(number.name for number in blocked)))]
        return replace(super().__getitem__(item), unreadable=[*report, ("threads", str(torch.get_num_threads()))])


def test_workers_block_signals_and_use_one_thread():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    dataset = WorkerReport(noise_images(), pretraining(8), 0)
    batches = list(training_batches(dataset, StepPlan(40, 4, 0), range(4), *loading(2)))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before == set()
    for batch in batches:
        assert dict(batch.unreadable) == {"blocked": "SIGHUP SIGINT SIGTERM SIGUSR1 SIGUSR2", "threads": "1"}


@pytest.mark.parametrize("stop", ["TERM", "INT", "USR1", "USR2", "HUP"])
def test_workers_ignore_the_signals_of_slurm(stop, monkeypatch):
    """SLURM sends them to every process of a job at any time; the current step still needs the workers."""
    set_up = loading_workers._init_worker
    monkeypatch.setattr(loading_workers, "_init_worker", lambda worker: (time.sleep(0.3), set_up(worker)))
    dataset, plan = training(), StepPlan(40, 8, 3)
    expected = list(training_batches(dataset, plan, range(12), *loading(0)))
    others = set(psutil.Process().children())
    script = f"while read -r pids; do kill -{stop} $pids; echo; done"
    with subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        others.add(psutil.Process(sender.pid))
        batches = training_batches(dataset, plan, range(12), *loading(2))
        workers = " ".join(str(child.pid) for child in set(psutil.Process().children()) - others)
        assert len(workers.split()) == 2
        found = []
        for _ in range(3):  # first while they are set up
            print(workers, file=sender.stdin, flush=True)
            sender.stdout.readline()
            found.append(next(batches))
        found += list(batches)
        sender.stdin.close()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.images_BCHW, theirs.images_BCHW)


def test_workers_exit_on_sigterm_from_their_parent():
    others = set(psutil.Process().children())
    batches = training_batches(training(), StepPlan(40, 8, 3), range(1000), *loading(2))
    next(batches)
    workers = set(psutil.Process().children()) - others
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


# Evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_with_a_last_partial_batch(workers):
    images, asked = noise_images(), [5, 0, 39, 2, 8, 8, 1]
    before = global_states()
    batches = list(evaluation_batches(EvaluationImages(images, evaluation(8), asked), 3, *loading(workers)))
    assert global_states() == before
    assert [batch.index_B.tolist() for batch in batches] == [[5, 0, 39], [2, 8, 8], [1]]
    assert [batch.labels_B.tolist() for batch in batches] == [[5, 0, 39 % 7], [2, 1, 1], [1]]
    assert [batch.first_row for batch in batches] == [0, 3, 6]
    assert {batch.images_BCHW.dtype for batch in batches} == {torch.uint8}
    together = torch.cat([batch.to(torch.device("cpu")).images_BCHW for batch in batches])
    expected = torch.stack([evaluation(8)(Image.fromarray(images.images_NHWC[i])) for i in asked])
    assert torch.equal(together, expected)


def test_no_more_workers_than_cpus(monkeypatch):
    monkeypatch.setattr("semaim.data.workers.usable_cpus", lambda: 1)
    batches = training_batches(training(), StepPlan(40, 8, 3), range(2), *loading(16))
    assert len(batches.loaded._workers) == 1
    assert len(list(batches)) == 2
