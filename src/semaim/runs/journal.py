"""The journal of a run, `metrics.jsonl`: every metric and change of status, written before anything else hears of it.

One JSON object a line, with its time in milliseconds since 1970: `{"time": ..., "step": ..., "metrics": {...}}`, or in
place of step and metrics a `"status"` (in MLflow's words), `"tags": {...}` that the run is found by, an `"artifact"`, a
file of the run folder to be shown, or a picture that changes with the steps: `"step"` and `"image": {"key": ...,
"file": ...}`. What a tracking server shows is a copy delivered from here, with these times, so a line delivered twice
is stored once.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from semaim.runs.status import MLflowStatus

IMAGE_KEY = re.compile(r"[A-Za-z0-9_.\- ]+(/[A-Za-z0-9_.\- ]+)*")  # what MLflow takes


def check_key(key: str) -> str:
    """The name of a picture, if MLflow takes it; raises ValueError if not."""
    if not IMAGE_KEY.fullmatch(key):
        raise ValueError(f"{key!r} names no picture: letters, digits, _ - . and spaces, with / between groups")
    return key


class Journal:
    """Appends to a journal; one process at a time.

    A run that continues from a checkpoint repeats the steps after it. What the journal already has for a metric up to
    some step is kept and the repeated values are not written again, so no step stands twice; likewise of an image.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._last_step: dict[str, int] = {}
        self._last_image: dict[str, int] = {}
        if path.exists():
            _cut_torn_line(path)
            for _, line in read(path, 0):
                for key in line.get("metrics", ()):
                    self._last_step[key] = line["step"]
                if "image" in line:
                    self._last_image[line["image"]["key"]] = line["step"]
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of a step, except those that it already has for this or a later step."""
        with self._lock:
            new = {key: value for key, value in metrics.items() if step > self._last_step.get(key, -1)}
            if new:
                self._last_step.update(dict.fromkeys(new, step))
                self._write({"step": step, "metrics": new})

    def status(self, status: MLflowStatus) -> None:
        """Write a change of status, in MLflow's words."""
        with self._lock:
            self._write({"status": status})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Write what the run is to be found by."""
        with self._lock:
            self._write({"tags": dict(tags)})

    def artifact(self, name: str) -> None:
        """Write that a file of the run folder is to be shown."""
        with self._lock:
            self._write({"artifact": name})

    def image(self, key: str, step: int, file: str) -> None:
        """Write that a PNG of the run folder is what this picture looks like at a step, unless a later one is known.

        Raises:
            ValueError: for a key that MLflow does not take.
        """
        with self._lock:
            if step > self._last_image.get(check_key(key), -1):
                self._last_image[key] = step
                self._write({"step": step, "image": {"key": key, "file": file}})

    def next_step(self, key: str) -> int:
        """The step after the last one of a metric."""
        return self._last_step.get(key, -1) + 1

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps({"time": int(time.time() * 1000), **line}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The complete lines from a byte offset on, each with the offset behind it."""
    with open(path, "rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):  # still being written
                return
            offset += len(raw)
            yield offset, json.loads(raw)


def _cut_torn_line(path: Path) -> None:
    """Remove the end of a line that a kill left unfinished."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(path, "rb+") as file:
            file.truncate(whole)
