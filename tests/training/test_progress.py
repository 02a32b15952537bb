"""What training says about speed and cost, about waiting for images, and about images that it does not use."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from semaim.core.distributed import Processes
from semaim.data.image_sets import FileImages
from semaim.data.loading import StepPlan
from semaim.data.workers import Loading
from semaim.runs.context import Run
from semaim.runs.journal import Journal
from semaim.training import pace, progress
from semaim.training.peak import Peak
from semaim.training.progress import report_unused
from semaim.training.settings import Length
from support.commands import journal


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            StepPlan(63, 32, 0),
            "31 images of 63 are not used in each epoch (others each time), since steps have trainer.batch_size=32: "
            "1 step per epoch. trainer.batch_size=21 would leave out 0",
        ),
        (StepPlan(63, 32, 0, world_size=4), "trainer.batch_size=20 would leave out 3"),
        (StepPlan(1437, 32, 0), ""),  # 29 images, 2 %
        (StepPlan(64, 32, 0), ""),
    ],
)
def test_many_unused_images_are_said(plan: StepPlan, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="semaim"):
        report_unused(plan)
    assert (said in caplog.text) if said else (caplog.text == "")


class Steps:
    """Reported steps of 32 images of 1 GFLOP, an entry every ten steps. The device's peak is 1 TFLOP/s."""

    def __init__(self, run: Run, last: int, monkeypatch: pytest.MonkeyPatch, workers: int = 1) -> None:
        found = Peak(1e12, "a device", "float32", "2026-11-28", Path("/x/peaks.json"))
        monkeypatch.setattr(progress, "training_peak", lambda *_: found)
        monkeypatch.setattr(progress, "peak_memory", lambda _: 3 * 2**30)
        run.folder.path.mkdir()
        run.journal = Journal(run.folder.path / "metrics.jsonl")
        self.run, self.seconds, self.done = run, 0.0, 0
        trainer: Any = SimpleNamespace(batch_size=32, log_every_steps=10)
        trainer.dtype, trainer.matrix_products = lambda _: torch.float32, lambda _: nullcontext()
        loading = Loading(workers, 60.0, 1)
        training: Any = SimpleNamespace(loading=loading, images=FileImages(Path("/nowhere"), ["a.png"], [0]))
        self.reporter = progress.ProgressReporter(training, 10**9, trainer, Length(2, 4, 0, last), run, 0)

    def go(self, count: int, seconds: float, wait: float = 0.0) -> None:
        for _ in range(count):
            self.done, self.seconds = self.done + 1, self.seconds + seconds
            step = progress.StepResult(1.0, 2.0, 0.1, seconds, wait, 0, False)
            self.reporter.step(self.done, step, self.seconds, self.done * 32 * 10**9)

    def entries(self) -> dict[int, dict[str, float]]:
        return {line["step"]: line["metrics"] for line in journal(self.run.folder.path) if "metrics" in line}


def test_speed_is_that_of_the_steps_since_the_last_entry(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(run, 40, monkeypatch)
    steps.go(1, 100.0)  # one-time costs
    steps.go(9, 0.32, wait=0.08)
    steps.go(10, 0.16)
    first, second = steps.entries().values()
    assert first["train/images_per_second"] == pytest.approx(100)
    assert first["data/wait"] == pytest.approx(0.25)
    assert first["train/tflops"] == pytest.approx(0.1)
    assert first["train/mfu"] == pytest.approx(0.1)
    spent = 100 + 9 * 0.32
    assert first["train/device_hours"] == pytest.approx(spent / 3600)
    assert first["train/device_hours_projected"] == pytest.approx((spent + 30 * 0.32) / 3600)
    assert (first["train/total_flops"], second["train/total_flops"]) == (320e9, 640e9)
    assert first["train/peak_memory_gib"] == 3
    assert (second["train/mfu"], second["data/wait"]) == (pytest.approx(0.2), 0)
    steps.go(15, 0.16)
    steps.reporter.last = 36
    steps.go(1, 1.76)  # a single step after the last entry: together with the ten before, they have the pace
    assert steps.entries()[36]["train/images_per_second"] == pytest.approx(32 * 16 / (15 * 0.16 + 1.76))
    assert steps.entries()[36]["train/device_hours_projected"] == steps.entries()[36]["train/device_hours"]


def test_several_processes_share_the_speed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.processes = Processes(0, 4, torch.device("cpu"))
    steps = Steps(run, 20, monkeypatch)
    steps.go(10, 0.32)
    entry = steps.entries()[10]
    assert (entry["train/images_per_second"], entry["train/tflops"]) == (pytest.approx(100), pytest.approx(0.025))
    left = entry["train/device_hours_projected"] - entry["train/device_hours"]
    assert left == pytest.approx(4 * 10 * 0.32 / 3600)


def test_the_status_line_and_the_peak(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="semaim"):
        steps = Steps(run, 20, monkeypatch)
        steps.go(10, 36.0, wait=0.36)
    assert caplog.messages == [
        "MFU is the share of the peak of matrix products: 1 TFLOP/s on a device in float32, measured 2026-11-28 (kept "
        "in /x/peaks.json)",
        "about 11 min 24 s left, at the speed of the first 1 step: 19 steps",
        "epoch 5.00/2  step 10/20  loss 1.0000  lr 1.00e-01  grad norm 2.00  0.889 images/s  data wait 1%  "
        "ETA 6 min 00 s  MFU 0%  889 MFLOP/s  3 GiB  0.1 of 0.2 device-hours",
    ]
    tags = [line["tags"] for line in journal(run.folder.path) if "tags" in line]
    assert tags == [{"peak": "1 TFLOP/s on a device in float32, measured 2026-11-28"}]


def test_a_peak_below_the_speed_of_training_is_dropped(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forgotten: list[Peak] = []
    monkeypatch.setattr(progress, "forget", forgotten.append)
    steps = Steps(run, 30, monkeypatch)
    steps.go(10, 0.03)  # 1.07 TFLOP/s
    assert steps.entries()[10]["train/mfu"] == pytest.approx(32e9 / 0.03 / 1e12)
    assert advice(caplog) == []
    steps.go(20, 0.02)
    assert [("train/mfu" in entry, entry["train/tflops"]) for entry in list(steps.entries().values())[1:]] == [
        (False, pytest.approx(1.6)),
        (False, pytest.approx(1.6)),
    ]
    assert len(forgotten) == 1
    assert advice(caplog) == [
        "training reaches 1.6 TFLOP/s, more than the peak of matrix products (1 TFLOP/s on a device in float32, "
        "measured 2026-11-28), whose measurement must have been disturbed: this run goes on without MFU, and the next "
        "start measures the peak again"
    ]
    tags = [line["tags"]["peak"] for line in journal(run.folder.path) if "tags" in line]
    assert tags[-1] == "unknown; more than 1 TFLOP/s on a device in float32, measured 2026-11-28"


def advice(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_much_waiting_for_images_is_said_once_and_at_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pace, "usable_cpus", lambda: 8)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    steps = Steps(run, 100, monkeypatch)
    steps.go(10, 5.0, wait=5.0)  # the loading processes start
    steps.go(49, 5.0, wait=1.0)
    assert advice(caplog) == []
    steps.go(1, 5.0, wait=1.0)
    what = (
        "set data.num_workers=8, the CPU cores of this process (now 1); if the storage or decoding is slow, pack the "
    )
    what += "files with `semaim shard` (docs/data.md)"
    first = f"training spent 20 % of its time waiting for images (50 s in 50 steps): {what}"
    assert advice(caplog) == [first]
    steps.go(40, 5.0, wait=1.0)
    last = f"training spent 20 % of its time waiting for images (1 min 30 s in 90 steps): {what}"
    assert advice(caplog) == [first, last]


@pytest.mark.parametrize(
    ("seconds", "wait"),
    [
        (5.0, 0.4),  # 8 %
        (0.4, 0.2),  # 18 s in all
    ],
)
def test_little_waiting_is_not_said(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds: float, wait: float
) -> None:
    steps = Steps(run, 100, monkeypatch)
    steps.go(100, seconds, wait)
    assert advice(caplog) == []


def test_more_loading_processes_than_cores_are_not_advised(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    steps = Steps(run, 60, monkeypatch, workers=10)
    steps.go(60, 5.0, wait=1.0)
    (said,) = advice(caplog)
    assert "all 4 CPU cores of this process load images already: give it more" in said
