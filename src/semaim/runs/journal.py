"""The journal of a run, `metrics.jsonl`: metrics, status changes, tags, artifacts and images.

The journal is written first; MLflow receives a copy of its lines with their times, and a line delivered twice is stored
once. Each line is a JSON object with a time in milliseconds since 1970 and one of:

- `"step": ..., "metrics": {...}`, of an evaluation with `"of": {...}`: the run folder of the encoder, and the images
- `"status": ...`, an MLflow status
- `"tags": {...}`, tags of the run
- `"artifact": ...`, a file of the run folder
- `"step": ..., "image": {"key": ..., "file": ...}`, an image of a step
- `"dataset": {...}`, images that the run uses
- `"step": ..., "model": {...}`, sizes and choices of the model that the run has made
- `"view": {...}`, how a page of MLflow shows the runs of a sweep
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NotRequired, Required

from pydantic import ValidationError
from typing_extensions import TypedDict

from semaim.core.files import adapter, as_json, first_problem, no_pipe, writing
from semaim.errors import DamagedFile
from semaim.runs.status import MLflowStatus

log = logging.getLogger(__name__)
IMAGE_KEY = re.compile(r"[A-Za-z0-9_.\- ]+(/[A-Za-z0-9_.\- ]+)*")  # MLflow's syntax


class _Image(TypedDict):
    key: str
    file: str


class DataUse(TypedDict):
    """A set of images that a run uses.

    Attributes:
        name: of the data.
        digest: start of the fingerprint of the set.
        source: folder of image files, or function that gives them.
        folder: whether `source` is a folder.
        images, classes: their numbers.
        context: what the run does with them.
    """

    name: str
    digest: str
    source: str
    folder: bool
    images: int
    classes: int
    context: Literal["training", "evaluation"]


class Evaluated(TypedDict):
    """What was measured: the run folder of an encoder, and name and digest of the images."""

    run_folder: str
    name: str
    digest: str


class View(TypedDict):
    """How a page shows the runs of a sweep.

    Attributes:
        name: of the view.
        groups: tags and parameters to group by, as ("tag" or "param", name).
        columns: the columns, as MLflow names them.
        metrics: accuracies with a column and a chart; runs are sorted by the first one.
        runs: folders of all runs, if some are shown under another sweep or run; else empty.
    """

    name: str
    groups: list[list[str]]
    columns: list[str]
    metrics: list[str]
    runs: NotRequired[list[str]]


class Line(TypedDict, total=False):
    """A line of a journal, as above."""

    time: Required[int]
    step: int
    metrics: dict[str, float]
    status: MLflowStatus
    tags: dict[str, str]
    artifact: str
    image: _Image
    dataset: DataUse
    model: dict[str, str]
    of: Evaluated
    view: View


def check_key(key: str) -> str:
    """Return the name of an image; raises ValueError if MLflow does not accept it."""
    if not IMAGE_KEY.fullmatch(key):
        raise ValueError(f"{key!r} names no picture: letters, digits, _ - . and spaces, with / between groups")
    return key


class Journal:
    """Appends to a journal; one process at a time.

    A run that continues from a checkpoint repeats the steps after it. Values of a metric or image for steps that the
    journal already contains are not written again, so no step occurs twice.

    Args:
        path: the journal file; an existing one is continued.
        check: is called before anything is written; it may raise an error.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._check = check
        self._lock = threading.RLock()  # also held by `_write`
        self._last_step: dict[str, int] = {}
        self._last_image: dict[str, int] = {}
        if path.exists():
            with writing(path):
                _end_last_line(path)
            for _, line in read(path, 0):
                for key in line.get("metrics", ()):
                    self._last_step[key] = line["step"]
                if "image" in line:
                    self._last_image[line["image"]["key"]] = line["step"]
        with writing(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open until close

    def log(self, step: int, metrics: Mapping[str, float], of: Evaluated | None = None) -> None:
        """Write metrics of a step, except those already written for this or a later step and those not finite.

        Args:
            step: training step.
            metrics: values by name.
            of: what they measure, if that is another run's encoder.
        """
        with self._lock:
            finite = {key: value for key, value in metrics.items() if math.isfinite(value)}  # JSON has no others
            new = {key: value for key, value in finite.items() if step > self._last_step.get(key, -1)}
            if new:
                self._write({"step": step, "metrics": new} | ({} if of is None else {"of": of}))
                self._last_step.update(dict.fromkeys(new, step))

    def status(self, status: MLflowStatus) -> None:
        """Write a change of status."""
        self._write({"status": status})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Write tags of the run."""
        self._write({"tags": dict(tags)})

    def dataset(self, used: DataUse) -> None:
        """Write images that the run uses."""
        self._write({"dataset": used})

    def model(self, step: int, params: Mapping[str, str]) -> None:
        """Write the sizes and choices of the model that the run has made."""
        self._write({"step": step, "model": dict(params)})

    def view(self, view: View) -> None:
        """Write how a page shows the runs of this sweep."""
        self._write({"view": view})

    def artifact(self, name: str) -> None:
        """Register a file of the run folder as an artifact."""
        self._write({"artifact": name})

    def image(self, key: str, step: int, file: str) -> None:
        """Write an image of a step, unless one of this or a later step is already written.

        Args:
            key: name of the image.
            step: training step.
            file: path of a PNG, relative to the run folder.

        Raises:
            ValueError: for a key that MLflow does not accept.
        """
        with self._lock:
            if step > self._last_image.get(check_key(key), -1):
                self._write({"step": step, "image": {"key": key, "file": file}})
                self._last_image[key] = step

    def next_step(self, key: str) -> int:
        """The step after the last written one of a metric."""
        return self._last_step.get(key, -1) + 1

    def _write(self, line: dict[str, Any]) -> None:
        self._check()
        with self._lock, writing(self.path):
            content = as_json({"time": int(time.time() * 1000), **line})
            end = os.fstat(self._file.fileno()).st_size
            try:
                while content:
                    content = content[self._file.write(content) :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(end)  # a part of a line would spoil the next one
                raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path, offset: int) -> Iterator[tuple[int, Line]]:
    """The complete lines from a byte offset on, each with the offset of its end; none if there is no file.

    Damaged lines are left out, with a warning.

    Raises:
        DamagedFile: if the file cannot be read.
    """
    try:
        file = open(no_pipe(path), "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    except OSError as error:
        raise DamagedFile(path, str(error.strerror), "get the permission to read it, or move it away") from error
    with file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):  # still being written
                return
            start, offset = offset, offset + len(raw)
            try:
                line = adapter(Line).validate_json(raw, strict=True)
            except ValidationError as error:
                _warn(path, start, first_problem(error))
                continue
            if "step" in line or not line.keys() & {"metrics", "image"}:
                yield offset, line
            else:
                _warn(path, start, "no step")


@functools.cache
def _warn(path: Path, start: int, reason: str) -> None:
    """Say once that a line is left out."""
    log.warning("%s: the line at byte %d is damaged and left out (%s)", path, start, reason)


def _end_last_line(path: Path) -> None:
    """Remove an incomplete last line, left by a killed process; end one that is not of a journal."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if content[complete:].startswith(b"{"):
        os.truncate(path, complete)
    elif complete < len(content):
        path.write_bytes(content + b"\n")
