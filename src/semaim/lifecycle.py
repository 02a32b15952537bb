"""A run from start to finish."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from semaim.checkpoints.store import fingerprint
from semaim.config.compose import folder_path
from semaim.config.messages import explain
from semaim.config.method import method_name
from semaim.config.run_spec import RunSpec
from semaim.core import distributed, terminal
from semaim.core.distributed import Processes
from semaim.core.files import write_json
from semaim.core.formatting import duration, quoted, relative_to_cwd, result_lines
from semaim.core.headline import headline_text
from semaim.core.ranks import ranks
from semaim.core.seeding import derive_seed, seed_all
from semaim.core.signals import StopRequest, interruption_or
from semaim.core.slurm_job import this_job
from semaim.core.store_address import SQLITE
from semaim.errors import CannotWrite, Interrupted, InUse, NonFiniteError, StillInUse, UserError
from semaim.runs import provenance
from semaim.runs.context import Run
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.runs.run_log import logged_to
from semaim.runs.status import MLFLOW_STATUS, StoredState
from semaim.tasks.task import Task, complete_command
from semaim.tracking import run_page
from semaim.tracking.datasets import record_datasets
from semaim.tracking.run_names import name_of
from semaim.training.extension import check_extension

log = logging.getLogger("semaim")
WAIT_FOR_LOCK_SECONDS = 480.0  # of a restarted job; the other processes wait for it, at most ten minutes


@contextmanager
def session(
    device: str, runs_dir: str = "runs", stop: StopRequest | None = None
) -> Iterator[tuple[Processes, StopRequest]]:
    """Start the processes and the signal handler, unless it is given, and stop what was started.

    Args:
        device, runs_dir: as in the configuration.
        stop: a signal handler that exists already.
    """
    given, stop = stop, stop or StopRequest()
    terminal.show_logs(ranks().rank == 0)
    try:
        processes = distributed.start(device, Path(runs_dir))
        yield processes, stop
    finally:
        if ranks().world_size > 1:  # else a group is the user's own, of a notebook
            distributed.stop()
        if given is None:
            stop.restore()


def execute(spec: RunSpec, processes: Processes, stop: StopRequest) -> float:
    """Execute a run, or load the result if it is finished; returns the value of its task's metric.

    The weights of a network are, in this order of precedence, those of

    1. the newest intact checkpoint of the run folder (`task.run`: `training.loop.prepare`),
    2. the newest intact checkpoint of the finished run that `extend=` names (the same),
    3. `checkpoint=` (the constructor of the task),
    4. another option that names weights, such as a teacher's (`task.load`),
    5. the seed (random; the constructor of the task).
    """
    config = spec.config
    folder = RunFolder(Path(config["run_dir"]))
    if (result := stored_result(folder, config)) is not None:
        folder.store_or_check_config(config)
        log.info("this run is finished already (%s)", relative_to_cwd(folder.path))
        _log_result(result)
        return result[folder.status()["metric"]]
    check_apart(folder, config)
    check_extension(folder, config)
    if spec.inherited is not None:
        log.info("%s", spec.inherited)
    seed_all(derive_seed(config["seed"], "weights"))
    tracking = instantiate(spec.cfg.tracking, _convert_="all")  # first: it refuses passwords in addresses
    with complete_command(spec):
        task: Task = instantiate(spec.cfg.task, _convert_="all")  # plain lists: checkpoints must not hold OmegaConf's
        task.spec = spec
        task.check(config["seed"], processes)
    task.load(processes)
    seed_all(derive_seed(config["seed"], "process", processes.rank))
    with _open_run(folder, spec, tracking, processes, stop) as run:
        started = time.monotonic()
        _tag_run(run, spec, task.highlights, None)
        if run.journal is not None:
            record_datasets(run.journal, spec, task.image_sets())
        result = task.run(run)
        stop.at_once = None
        if bad := [f"{name} is {value}" for name, value in result.items() if not math.isfinite(value)]:
            raise NonFiniteError(f"no result, since {', '.join(bad)}: look at the journal for the step that went wrong")
        if processes.is_main:
            folder.set_status("finished", metric=task.metric, result=result, asked=_result_inputs(config))
            if run.journal is not None and (sizes := task.product()):
                step = max(0, run.journal.next_step("train/loss") - 1)
                run.journal.model(step, spec.parts | {"seed": str(config["seed"])} | sizes)
        _tag_run(run, spec, task.highlights, result)
    if processes.is_main:
        log.info("finished in %s: %s", duration(time.monotonic() - started), headline_text(task.metric, result))
        _log_result(result)
        where = relative_to_cwd(folder.path)
        log.info("the run is in %s", where)
        for purpose, command in (tracking.view_commands(folder) | task.next_commands(where, spec)).items():
            log.info("  %-13s %s", purpose + ":", command)
    return result[task.metric]


def _result_inputs(config: dict[str, Any]) -> dict[str, Any]:
    """What a stored result depends on: steps, fingerprint of the checkpoint, folder of the data. For status.json."""
    trainer = config.get("trainer") or {}
    fingerprints = [fingerprint(Path(checkpoint).expanduser()) for checkpoint in _checkpoints(config)]
    return {
        "max_steps": trainer.get("max_steps"),
        "checkpoint": fingerprints[0] if len(fingerprints) == 1 else fingerprints or None,
        "data": (root := (config.get("data") or {}).get("root")) and str(Path(root).expanduser().resolve()),
    }


def _checkpoints(config: dict[str, Any]) -> list[str]:
    """The checkpoints that a run evaluates or starts from: none, one or several."""
    named = config.get("checkpoint") or []
    return [named] if isinstance(named, str) else list(named)


def stored_result(folder: RunFolder, config: dict[str, Any]) -> dict[str, float] | None:
    """The result of this run, if it is finished and its inputs are known to be the same."""
    status = folder.status()
    asked, inputs = status.get("asked"), _result_inputs(config)
    finished = status.get("state") == "finished" and isinstance(asked, dict) and inputs | asked == inputs
    in_mlflow = any(name.startswith("mlflow:") for name in _checkpoints(config))  # that run may have continued
    return status["result"] if finished and not in_mlflow else None


def check_apart(folder: RunFolder, config: dict[str, Any]) -> None:
    """Raise UserError if a run would draw its pictures among its images, where the next one would find them."""
    data, uri = config.get("data") or {}, (config.get("tracking") or {}).get("uri") or ""
    layout = (data.get("source") or {}).get("layout", "splits")  # of folders of images
    if not data.get("root") or layout == "splits":
        return
    root = Path(data["root"]).expanduser().resolve()
    if layout == "auto" and (root / "train").is_dir():  # then other folders do not count, or are ambiguous
        return
    written = {"runs_dir": folder.path}
    if uri.startswith(SQLITE):  # artifacts are beside the database
        written["tracking.uri"] = Path(uri.removeprefix(SQLITE)).expanduser()
    for option, path in written.items():
        inside = path.resolve().is_relative_to(root) and path.resolve().relative_to(root).parts
        if inside and not any(part.startswith(".") for part in inside):
            raise UserError(
                f"{quoted(relative_to_cwd(path))} would be inside of data.root={quoted(data['root'])}, so the next run "
                f"would take its pictures for images: start from another folder, or set {option}"
            )


@contextmanager
def _open_run(
    folder: RunFolder, spec: RunSpec, tracking: Any, processes: Processes, stop: StopRequest
) -> Iterator[Run]:
    """Lock the run folder, open and track its journal, and write the final status however the run ends.

    All processes call this together: if the first process finds a problem with the folder, all of them stop.
    """
    problem: UserError | Interrupted | None = None
    if processes.is_main:
        try:
            _lock(folder, stop)
            folder.store_or_check_config(spec.config)
            folder.evaluations(), folder.tracked()  # damaged ones are told now, not after an epoch
            _record_start(folder, spec, processes)
        except (UserError, Interrupted) as error:
            folder.unlock()
            problem = error
    kind = next((kind for kind in (StillInUse, Interrupted) if isinstance(problem, kind)), UserError)
    if (told := processes.broadcast(problem and (kind, str(problem)))) is not None:
        stop.agree(processes)
        raise problem or told[0](told[1])
    run = Run(
        folder,
        spec.config,
        processes,
        spec.config["seed"],
        stop,
        journal=None,
        choices=spec.choices,
        overrides=spec.overrides,
        extends=None if spec.config.get("extend") is None else RunFolder(Path(spec.config["extend"])),
    )
    if not processes.is_main:
        yield run
        return
    try:
        with logged_to(folder.path / "run.log") as run_log:
            log.info("run folder: %s", relative_to_cwd(folder.path))
            with (
                closing(Journal(folder.journal, folder.check_kept)) as run.journal,
                _end_recorded(run, run.journal, tracking, run_log),
            ):
                yield run
    finally:
        folder.unlock()


def _lock(folder: RunFolder, stop: StopRequest) -> None:
    """Lock the run folder; a restarted job waits for the process of its earlier start, on a node that SLURM has lost.

    Raises:
        StillInUse: if that has not ended in time.
        Interrupted: after a signal.
    """
    started, told = time.monotonic(), False
    while True:
        try:
            return folder.lock()
        except InUse as error:
            if not this_job().get("restarts"):
                raise
            if time.monotonic() > started + WAIT_FOR_LOCK_SECONDS:
                raise StillInUse(f"{error} (waited {duration(WAIT_FOR_LOCK_SECONDS)})") from error
            if stop.requested:
                raise Interrupted(f"stopped by {stop.name} while {error}") from error
            if not told:
                log.info("waiting at most %s, since %s", duration(WAIT_FOR_LOCK_SECONDS), error)
            told = True
        time.sleep(1)


@contextmanager
def _end_recorded(run: Run, journal: Journal, tracking: Any, run_log: logging.Handler) -> Iterator[None]:
    """Write the status before and after a block, and deliver the journal, however the block ends."""
    journal.status("RUNNING")
    run.folder.set_status("running", **_progress(run.folder))
    wait, failure = True, ""
    try:
        tracking.start(run.folder, journal)
        yield
    except BaseException as caught:
        state: StoredState = "failed"
        error = interruption_or(caught)
        wait = not isinstance(error, KeyboardInterrupt)
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        if stopped:
            state = "requeued" if run.stop.will_be_requeued() else "interrupted"
        message = (not stopped and explain(error)) or str(error) or type(error).__name__
        with suppress(CannotWrite):  # on a full disk the first error is the one to report
            run.folder.set_status(state, error=message, **_progress(run.folder))
            journal.status(MLFLOW_STATUS[state])
        failure = f"the run ends as {state}: {message}"
        run_log.handle(logging.makeLogRecord({"msg": failure, "exc_info": None if stopped else sys.exc_info()}))
        run.stop.at_once = None  # no step ends any more: Ctrl-C while metrics are delivered acts at once
        raise
    else:
        journal.status("FINISHED")
    finally:
        try:
            tracking.finish(wait)
        except KeyboardInterrupt:
            log.error(failure or "the run is finished")  # else the last words would be those on the interruption
            raise


def _progress(folder: RunFolder) -> dict[str, Any]:
    """Progress of training: the entries of status.json to keep."""
    return {name: value for name, value in folder.status().items() if name in ("step", "last_step", "batch_size")}


def _record_start(folder: RunFolder, spec: RunSpec, processes: Processes) -> None:
    """Add this start to environment.json, and warn if the code is not that of the first start."""
    starts = folder.starts()
    now = provenance.describe(processes.device, processes.world_size)
    if not starts:
        write_json(folder.path / "sources.json", provenance.checksums())
    elif changes := provenance.code_changes(starts[0], now, folder.path / "sources.json"):
        log.warning("the code has changed since this run began: %s", changes)
    config_dirs = [str(folder_path(each)) for each in spec.all_folders]
    now |= {"choices": spec.parts, "title": name_of(spec), "config_dirs": config_dirs}
    if spec.choices["task"] == "pretrain" and (method := method_name(spec.config, spec.choices)) is not None:
        now["method"] = method
    write_json(folder.path / "environment.json", {"starts": [*starts, now]})


def _tag_run(run: Run, spec: RunSpec, highlights: Mapping[str, str], result: dict[str, float] | None) -> None:
    """Write the run's tags and the description on its page to the journal."""
    if run.processes.is_main:
        start = run.folder.last_start()
        run.tag(run_page.tags(spec, start))
        run.tag({run_page.NOTE: run_page.description(spec, start, highlights, result)})


def _log_result(result: Mapping[str, float]) -> None:
    for line in result_lines(result):
        log.info("%s", line)
