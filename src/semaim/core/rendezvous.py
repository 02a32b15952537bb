"""Where the processes of a run find each other: a store that they share, before they are a process group."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist

from semaim.core.files import read_json, write_json, writing
from semaim.core.formatting import duration, plural
from semaim.core.ranks import STEP_TASKS, Ranks
from semaim.errors import UserError

log = logging.getLogger(__name__)
TIMEOUT = timedelta(minutes=10)  # of the rendezvous and of collective operations
POLL_SECONDS, TELL_AFTER_SECONDS = 0.1, 20.0  # while waiting for other processes


@cache
def store_of(place: Ranks, runs_dir: Path) -> Any:
    """The store that the processes share: torchrun's at MASTER_PORT, or one that the first process offers.

    The first process of a submitit job or srun step binds a free port and writes its address to a file in a folder
    that all nodes share. A fixed port could already be in use.

    Raises:
        UserError: if not all processes come, or those of srun have different command lines.
    """
    if place.launcher == "torchrun":
        try:
            store, _, _ = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))  # type: ignore[attr-defined]
        except ValueError as error:  # a variable is missing
            missing = str(error).rpartition(": ")[2]
            raise UserError(f"RANK={place.rank} says that torchrun started this process, but: {missing}; start it by "
                            f"torchrun, or alone with env -u RANK semaim run ...") from error  # fmt: skip
        return store
    file = _rendezvous_file(place, runs_dir)
    if place.rank:
        if (address := _wait(lambda: read_json(file, dict[str, Any]), place)) is None:
            which = f"process {place.rank} of {place.world_size}"
            raise UserError(f"{which} waited {_limit()} for the first to write {file}, which all must see"
                            f"{_alone(place)}")  # fmt: skip
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address["host"], address["port"], is_master=False, timeout=TIMEOUT
        )
        _meet(store, place)
        return store
    host = os.environ.get("SLURMD_NODENAME", "localhost")
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)  # type: ignore[attr-defined]
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"host": host, "port": store.port})
    try:
        _meet(store, place)
    finally:
        file.unlink(missing_ok=True)  # the step may start another run
    return store


def _rendezvous_file(place: Ranks, runs_dir: Path) -> Path:
    """The file with the address of the first process, another one for each start of a job."""
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    if place.launcher == "srun":
        return runs_dir / f".srun_{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}_{attempt}.json"
    from submitit import JobEnvironment

    return JobEnvironment().paths.folder / f"rendezvous_{attempt}.json"


def _meet(store: Any, place: Ranks) -> None:
    """Wait until all processes have come; raise UserError in all of them if some do not, or are to run another run."""
    store.set(f"command_{place.rank}", command := shlex.join(sys.argv[1:]))
    if place.rank == 0:
        keys = [f"command_{rank}" for rank in range(place.world_size)]
        if _wait(lambda: store.check(keys), place):
            commands = [store.get(key).decode() for key in keys]
            others = [f"process {rank} has {other!r}" for rank, other in enumerate(commands) if other != command]
            problem = f"process 0 has the options {command!r}, but {others[0]}{_alone(place)}" if others else ""
        else:
            came = sum(store.check([key]) for key in keys)
            problem = f"{came} of {plural(place.world_size, 'process', 'es')} came within {_limit()}{_alone(place)}"
        store.set("problem", problem)
        if problem:
            time.sleep(10 * POLL_SECONDS)  # until the others have read it: the store ends with this process
    _wait(lambda: store.check(["problem"]), place)
    if problem := store.get("problem").decode():
        raise UserError(problem)


def _wait(condition: Callable[[], Any], place: Ranks) -> Any:
    """The value of a condition when it is true, or after TIMEOUT. Unlike the store's own waits this hears Ctrl-C."""
    began, told = time.monotonic(), False
    while not (value := condition()) and (waited := time.monotonic() - began) < TIMEOUT.total_seconds():
        if waited > TELL_AFTER_SECONDS and not told:
            log.info("waiting for the other processes, %d together (at most %s)", place.world_size, _limit())
            told = True
        time.sleep(POLL_SECONDS)
    return value


def _limit() -> str:
    return duration(TIMEOUT.total_seconds())


def _alone(place: Ranks) -> str:
    """What to do if processes of a SLURM step do not belong together."""
    if place.launcher != "srun":
        return ""
    return (
        f"; {STEP_TASKS}={place.world_size} says that srun started {place.world_size} processes, which train together: "
        f"start semaim in each of them, with the same options, or alone with env -u {STEP_TASKS} semaim run ..."
    )
