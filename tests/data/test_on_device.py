"""Batches for a GPU are copied on a stream of their own. Here the streams only write down what they are told."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from semaim.data.batches import Batch
from semaim.data.on_device import OnDevice


class Stream:
    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told

    def record_event(self) -> str:
        self.told.append(f"{self.name}: event {len(self.told)}")
        return self.told[-1]

    def wait_event(self, event: str) -> None:
        self.told.append(f"{self.name}: waits for {event}")

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name}: waits for all of {other.name}")


def test_a_copy_waits_for_the_step_before_only(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    computing, copying = Stream("computing", told), Stream("copying", told)
    current = [computing]

    @contextmanager
    def on(stream: Stream) -> Any:
        current.append(stream)
        yield
        current.pop()

    def copy(batch: Batch, device: torch.device) -> Batch:
        told.append(f"{current[-1].name}: copies {batch.first_row} to {device}")
        return batch

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: copying)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(Batch, "to", copy)
    empty = torch.empty(0)
    for batch in OnDevice((Batch(empty, empty, empty, row, []) for row in range(3)), torch.device("cuda", 0)):
        told.append(f"computing: step {batch.first_row}")
    assert told == [
        "copying: copies 0 to cuda:0", "computing: waits for all of copying", "computing: event 2", "computing: step 0",
        "copying: waits for computing: event 2", "copying: copies 1 to cuda:0", "computing: waits for all of copying",
        "computing: event 7", "computing: step 1",
        "copying: waits for computing: event 7", "copying: copies 2 to cuda:0", "computing: waits for all of copying",
        "computing: event 12", "computing: step 2",
    ]  # fmt: skip


def test_on_the_cpu_they_are_passed_on() -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    (batch,) = OnDevice(iter([Batch(images, labels, labels, 7, [("bad.jpg", "empty")])]), torch.device("cpu"))
    assert batch.images_BCHW is images
    assert (batch.first_row, batch.unreadable) == (7, [("bad.jpg", "empty")])
