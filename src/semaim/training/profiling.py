"""A profile of some training steps by torch.profiler: a trace for a timeline, and the most expensive operations."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import tempfile
import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from semaim.core.files import if_possible, write_text, writing
from semaim.core.formatting import plural, quoted, relative_to_cwd
from semaim.core.tables import text_table
from semaim.core.terminal import LINES
from semaim.runs.context import Run

log = logging.getLogger(__name__)
FOLDER = "profile"  # in the run folder
SKIPPED, WARM_UP = 5, 2  # first steps of a start, which have one-time costs; steps in which the profiler starts
EXPENSIVE, LONGEST_NAME = 10, 80  # operations in the table, and characters of a name
_recording = False  # whether a profile is under way in this process


def region(name: str) -> AbstractContextManager[object]:
    """A block of a step that the timeline of a profile names; without a profile it costs nothing."""
    return record_function(name) if _recording else nullcontext()


class Profile(AbstractContextManager["Profile"]):
    """A profile of the first process, written to `profile/` in the run folder, also if the block ends early.

    Each start of a run has its own, since it may be on another machine. It changes no result.

    Args:
        steps: to record; None for no profile.
        run: the run.
    """

    def __init__(self, steps: int | None, run: Run) -> None:
        self.wanted = (steps or 0) if run.processes.is_main else 0
        self.run = run
        self._recorder: Any = None
        self._open = ExitStack()
        self._first = self._last = self._step = 0  # steps to record, and the last one done

    def begin(self, first: int, last: int) -> None:
        """Start, for the training from step `first` to step `last`."""
        global _recording
        left, self._step = last - first, first
        if not self.wanted or not left:
            return
        active = min(self.wanted, left)
        if active < self.wanted:
            log.warning("trainer.profile_steps=%d, but this start trains %s: the profile has all of them",
                        self.wanted, plural(left, "step"))  # fmt: skip
        warm_up = min(WARM_UP, left - active)
        skipped = min(SKIPPED, left - active - warm_up)
        self._first = first + skipped + warm_up + 1
        self._last = self._first + active - 1
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports on standard error that it starts and stops
        device = self.run.processes.device.type
        with warnings.catch_warnings():  # without a warm-up, since there are no more steps
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
            steps = schedule(wait=skipped, warmup=warm_up, active=active, repeat=1)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
        self._recorder = profile(activities=activities, schedule=steps, on_trace_ready=self._write)
        self._open.enter_context(self._recorder)
        _recording = True

    def step(self) -> None:
        """A step has ended."""
        self._step += 1
        if self._recorder is not None:
            self._recorder.step()
            if self._step == self._last:
                self._close()

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        global _recording
        _recording, self._recorder = False, None
        self._open.close()

    def _write(self, recorder: Any) -> None:
        """Write the trace and the table, and say where they are."""
        last = self._step
        name = f"{FOLDER}/steps_{self._first}_to_{last}"
        trace, table = (self.run.folder.path / f"{name}.{end}" for end in ("json.gz", "txt"))
        text = _table(recorder, max(1, last - self._first + 1))
        with if_possible(), writing(trace):
            trace.parent.mkdir(exist_ok=True)
            _export(recorder, trace)
            write_text(table, text + "\n")
            shown = quoted(relative_to_cwd(trace))
            message = (
                "profile of steps %d to %d: %s, a timeline for https://ui.perfetto.dev. Most expensive operations:\n%s"
            )
            log.info(message, self._first, last, shown, text, extra=LINES)
            self.run.artifact(f"{name}.json.gz")
            self.run.artifact(f"{name}.txt")


def _export(recorder: Any, file: Path) -> None:
    """Write the trace, compressed."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        plain = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(plain))
        with open(plain, "rb") as content, gzip.open(Path(folder) / file.name, "wb") as compressed:
            shutil.copyfileobj(content, compressed)
        os.replace(Path(folder) / file.name, file)


def _table(recorder: Any, steps: int) -> str:
    """The most expensive operations, by the time that is not of operations they call; on a GPU, its kernels."""
    on_gpu = ProfilerActivity.CUDA in recorder.activities
    operations = [
        (each.self_device_time_total if on_gpu else each.self_cpu_time_total, each.count, each.key)
        for each in recorder.key_averages()
        if not each.is_user_annotation and (each.device_type != DeviceType.CPU) == on_gpu
    ]
    total = sum(microseconds for microseconds, _, _ in operations) or 1.0
    rows = [("operation", "ms per step", "share", "calls per step")]
    for microseconds, calls, name in sorted(operations, reverse=True)[:EXPENSIVE]:
        numbers = (f"{microseconds / 1000 / steps:.3g}", f"{microseconds / total:.1%}", f"{calls / steps:.3g}")
        rows.append((name[:LONGEST_NAME], *numbers))
    return text_table(rows, right=range(1, 4))
