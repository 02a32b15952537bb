"""A run from opening its folder to its last word."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from semaim.checkpoints.store import fingerprint
from semaim.config.run_spec import RunSpec
from semaim.core import distributed, terminal
from semaim.core.distributed import Processes
from semaim.core.files import read_json, write_json
from semaim.core.formatting import duration, relative_to_cwd
from semaim.core.seeding import derive_seed, seed_all
from semaim.core.signals import StopRequest
from semaim.errors import Interrupted, UserError
from semaim.runs import provenance
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.runs.status import MLflowStatus, RunState
from semaim.tracking import run_page

log = logging.getLogger("semaim")


@contextmanager
def session(device: str) -> Iterator[tuple[Processes, StopRequest]]:
    """The processes of a command, and its ear for signals, for as long as the block lasts."""
    stop = StopRequest()
    try:
        processes = distributed.start(device)
        terminal.show_logs(processes.is_main)
        yield processes, stop
    finally:
        distributed.stop()
        stop.restore()


def execute(spec: RunSpec, processes: Processes, stop: StopRequest) -> float:
    """Make a run, or show the result of one that is finished; the value of its task's metric."""
    config = spec.config
    folder = RunFolder(Path(config["run_dir"]))
    if (result := stored_result(folder, config)) is not None:
        folder.store_or_check_config(config)
        log.info("this run is finished already (%s)", relative_to_cwd(folder.path))
        _tell_result(result)
        return result[folder.status()["metric"]]
    if config["seed"] < 0:
        raise UserError(f"seed={config['seed']} must not be negative")
    seed_all(derive_seed(config["seed"], "weights"))
    task = instantiate(spec.cfg.task, _convert_="all")  # plain lists: OmegaConf's do not belong in checkpoints
    task.check(config["seed"], processes)
    seed_all(derive_seed(config["seed"], "process", processes.rank))
    with _opened(folder, spec, processes, stop) as (run, tracking):
        started = time.monotonic()
        _introduce(run, spec, task.look_at, None)
        result = task.run(run)
        if processes.is_main:
            folder.set_status("finished", metric=task.metric, result=result, asked=_asked(config))
        _introduce(run, spec, task.look_at, result)
    if processes.is_main:
        log.info("finished in %s", duration(time.monotonic() - started))
        _tell_result(result)
        shown = relative_to_cwd(folder.path)
        _tell_next(shown, tracking.how_to_look(folder), task.next_commands(shown, spec))
    return result[task.metric]


def _asked(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a finished run unfinished when it changes: the steps asked for, and the checkpoint it is about."""
    trainer = config.get("trainer") or {}
    found = [fingerprint(Path(checkpoint).expanduser()) for checkpoint in _checkpoints(config)]
    return {"max_steps": trainer.get("max_steps"), "checkpoint": found[0] if len(found) == 1 else found or None}


def _checkpoints(config: dict[str, Any]) -> list[str]:
    """What a run is about: one checkpoint, several to be compared, or none."""
    named = config.get("checkpoint") or []
    return [named] if isinstance(named, str) else list(named)


def stored_result(folder: RunFolder, config: dict[str, Any]) -> dict[str, float] | None:
    """The result of this run, if it is finished and what it is about is known to be the same."""
    status = folder.status()
    finished = status.get("state") == "finished" and status["asked"] == _asked(config)
    elsewhere = any(name.startswith("mlflow:") for name in _checkpoints(config))  # that run may have gone on
    return status["result"] if finished and not elsewhere else None


@contextmanager
def _opened(folder: RunFolder, spec: RunSpec, processes: Processes, stop: StopRequest) -> Iterator[tuple[Run, Any]]:
    """The run folder locked, its journal open and tracked, and its status true however the run ends.

    All processes enter together: what the first one finds wrong with the folder ends them all.
    """
    tracking = instantiate(spec.cfg.tracking, _convert_="all")
    problem: str | None = None
    if processes.is_main:
        try:
            folder.lock()
            folder.store_or_check_config(spec.config)
            _note_start(folder, spec, processes)
        except UserError as error:
            problem = str(error)
    if (problem := processes.broadcast(problem)) is not None:
        raise UserError(problem)
    run = Run(
        folder,
        spec.config,
        processes,
        spec.config["seed"],
        stop,
        journal=None,
        choices=spec.choices,
        overrides=spec.overrides,
    )
    if not processes.is_main:
        yield run, tracking
        return
    handler = logging.FileHandler(folder.path / "run.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.info("run folder: %s", relative_to_cwd(folder.path))
    run.journal = Journal(folder.journal)
    run.journal.status("RUNNING")
    folder.set_status("running", **_progress(folder))
    status: MLflowStatus = "FAILED"
    state: RunState = "failed"
    try:
        tracking.start(folder, run.journal)
        yield run, tracking
        status = "FINISHED"
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        status, state = ("KILLED", "interrupted") if stopped else ("FAILED", "failed")
        if stopped and stop.will_be_requeued():
            status, state = "SCHEDULED", "requeued"
        words = str(error) or type(error).__name__
        folder.set_status(state, error=words, **_progress(folder))
        words = f"the run ends as {status}: {words}"
        handler.handle(logging.makeLogRecord({"msg": words, "exc_info": None if stopped else sys.exc_info()}))
        raise
    finally:
        run.journal.status(status)
        tracking.finish()
        run.journal.close()
        log.removeHandler(handler)
        handler.close()
        folder.unlock()


def _progress(folder: RunFolder) -> dict[str, int]:
    """How far training is, in the words of status.json."""
    return {name: value for name, value in folder.status().items() if name in ("step", "last_step", "batch_size")}


def _note_start(folder: RunFolder, spec: RunSpec, processes: Processes) -> None:
    """Add this start to environment.json, and warn if the code is not that of the first start."""
    path = folder.path / "environment.json"
    starts = (read_json(path) or {"starts": []})["starts"]
    now = provenance.describe(processes.device, processes.world_size)
    if starts and any(starts[0][key] != now[key] for key in ("commit", "dirty", "semaim")):
        log.warning("the code has changed since this run began: commit %s%s then, %s%s now",
                    starts[0]["commit"], " (modified)" if starts[0]["dirty"] else "",
                    now["commit"], " (modified)" if now["dirty"] else "")  # fmt: skip
    write_json(path, {"starts": [*starts, now | {"choices": spec.parts}]})


def _introduce(run: Run, spec: RunSpec, look_at: Mapping[str, str], result: dict[str, float] | None) -> None:
    """Say in the journal what the run is to be found by, and what is to be read on its page."""
    if run.processes.is_main:
        start = run_page.last_start(run.folder.path)
        run.tag(run_page.tags(spec, start))
        run.tag({run_page.NOTE: run_page.description(spec, start, look_at, result)})


def _tell_result(result: dict[str, float]) -> None:
    """Show each result on a line; what ends in _std is the standard deviation of the one of that name."""
    width = max(len(name) for name in result)
    for name, value in result.items():
        if name.removesuffix("_std") in result.keys() - {name}:
            continue
        deviation = f" ± {result[f'{name}_std']:.2f}" if f"{name}_std" in result else ""
        digits = "d" if isinstance(value, int) else ".2f" if abs(value) >= 1 else ".4g"
        log.info("  %-*s  %s%s", width, name, format(value, digits), deviation)


def _tell_next(folder: Path, look: dict[str, str], commands: dict[str, str]) -> None:
    """Where the run is, and what to type next."""
    log.info("the run is in %s", folder)
    for purpose, command in (look | commands).items():
        log.info("  %-13s %s", purpose + ":", command)
