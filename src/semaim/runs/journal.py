"""The journal of a run, `metrics.jsonl`: metrics, status changes, tags, artifacts and images.

The journal is written first; MLflow receives a copy of its lines with their times, and a line delivered twice is stored
once. Each line is a JSON object with a time in milliseconds since 1970 and one of:

- `"step": ..., "metrics": {...}`
- `"status": ...`, an MLflow status
- `"tags": {...}`, tags of the run
- `"artifact": ...`, a file of the run folder
- `"step": ..., "image": {"key": ..., "file": ...}`, an image of a step
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from semaim.runs.status import MLflowStatus

IMAGE_KEY = re.compile(r"[A-Za-z0-9_.\- ]+(/[A-Za-z0-9_.\- ]+)*")  # MLflow's syntax


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
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()  # also held by `_write`
        self._last_step: dict[str, int] = {}
        self._last_image: dict[str, int] = {}
        if path.exists():
            _truncate_partial_line(path)
            for _, line in read(path, 0):
                for key in line.get("metrics", ()):
                    self._last_step[key] = line["step"]
                if "image" in line:
                    self._last_image[line["image"]["key"]] = line["step"]
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open until close

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of a step, except those already written for this or a later step and those not finite."""
        with self._lock:
            finite = {key: value for key, value in metrics.items() if math.isfinite(value)}  # JSON has no others
            new = {key: value for key, value in finite.items() if step > self._last_step.get(key, -1)}
            if new:
                self._last_step.update(dict.fromkeys(new, step))
                self._write({"step": step, "metrics": new})

    def status(self, status: MLflowStatus) -> None:
        """Write a change of status."""
        self._write({"status": status})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Write tags of the run."""
        self._write({"tags": dict(tags)})

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
                self._last_image[key] = step
                self._write({"step": step, "image": {"key": key, "file": file}})

    def next_step(self, key: str) -> int:
        """The step after the last written one of a metric."""
        return self._last_step.get(key, -1) + 1

    def _write(self, line: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps({"time": int(time.time() * 1000), **line}, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The complete lines from a byte offset on, each with the offset of its end."""
    with open(path, "rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):  # still being written
                return
            offset += len(raw)
            yield offset, json.loads(raw)


def _truncate_partial_line(path: Path) -> None:
    """Remove an incomplete last line, left by a killed process."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with open(path, "rb+") as file:
            file.truncate(complete)
