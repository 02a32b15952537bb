"""Runs that start simultaneously: `python starts_at_once.py <uri> <experiment> <run folder> [...]`.

Each run folder gets its own process. All processes finish their imports before any run begins. Each delivers as a run
does: a background thread sends the content of the journal.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from threading import Barrier

import mlflow  # noqa: F401 - once, before the processes fork

from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.tracking.mlflow import MLflow


def start(path: Path, uri: str, experiment: str, ready: Barrier) -> None:
    """A run of three steps."""
    folder = RunFolder(path)
    journal = Journal(folder.journal)
    tracking = MLflow(uri, experiment, flush_seconds=120, system_metrics_seconds=0)
    ready.wait(60)
    journal.status("RUNNING")
    tracking.start(folder, journal)
    for step in range(3):
        journal.log(step, {"train/loss": 1 / (1 + step)})
    journal.status("FINISHED")
    tracking.finish()
    journal.close()


def main() -> int:
    uri, experiment, *folders = sys.argv[1:]
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(len(folders))
    processes = [fork.Process(target=start, args=(Path(path), uri, experiment, ready)) for path in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    sys.exit(main())
