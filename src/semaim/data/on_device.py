"""Training batches on the device of a process, copied there while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from semaim.data.batches import Batch


class OnDevice(Iterator[Batch]):
    """Batches on a device. To a GPU they are copied on a stream of their own, beside the computations.

    The host enqueues the computations of a step faster than the GPU does them, so it is here for the next batch while
    the GPU is busy with the one before. The copy waits for the step before that only, whose batch left its memory to
    this one: there are never more than two on the device. On the CPU the batches are passed on as they are.

    Args:
        batches: batches in the host's memory, pinned for a GPU.
        device: of the process.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self.batches = batches
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._begun: torch.cuda.Event | None = None  # on the GPU: all before the computations on the last batch is done
        self._held: Batch | None = None  # the last one: its memory is in use, even if its user has let it go

    def __next__(self) -> Batch:
        """The next batch; raises what the batches raise."""
        batch = next(self.batches)
        if self.stream is None:
            return batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        if self._begun is not None:
            self.stream.wait_event(self._begun)
        with torch.cuda.stream(self.stream):
            batch = batch.to(self.device)
        computing.wait_stream(self.stream)
        self._begun = computing.record_event()
        self._held = replace(batch)
        return batch
