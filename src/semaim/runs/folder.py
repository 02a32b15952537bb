"""The folder of a run: its name, its lock, its configuration and its status.

runs/<name>/config.yaml         the configuration with interpolations resolved
            environment.json    commit, versions and machine of every start
            sources.json        checksums of the sources of this program at the first start
            status.json         state, step, result or error
            metrics.jsonl       the journal
            checkpoints/        see semaim.checkpoints.store
            run.log             log output
            mlflow.json         id of the MLflow run, and the delivered part of the journal
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired

from omegaconf import OmegaConf
from typing_extensions import TypedDict

from semaim.config.naming import differences
from semaim.config.old_versions import upgraded
from semaim.config.run_spec import RunSpec
from semaim.config.source_run import stored_config
from semaim.core import locks
from semaim.core.files import read_json, write_json, write_text, writing
from semaim.core.slurm_job import this_job
from semaim.errors import CannotWrite, DamagedFile, InUse, NotReadable, TakenOver, UserError
from semaim.runs.provenance import Start
from semaim.runs.status import RunState, Status, StoredState

log = logging.getLogger(__name__)


class _Environment(TypedDict):
    starts: list[Start]


class Tracked(TypedDict):
    """Content of mlflow.json: the MLflow run, and the number of bytes of the journal that it has received."""

    uid: str
    experiment: str
    run_id: str | None
    sent: int
    uri: NotRequired[str]
    experiment_id: NotRequired[str]


class RunFolder:
    """Folder of a run.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock_file: Any = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        """Path of the journal."""
        return self.path / "metrics.jsonl"

    def lock(self) -> None:
        """Create the folder if necessary, and lock it until this process ends; the kernel releases it after SIGKILL.

        Raises:
            InUse: if another process has locked it; one of an earlier start of the same job is told to end.
            UserError: if the folder cannot be created or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the run folder {self.path} cannot be made ({error}): set runs_dir") from error
        file = locks.opened(self.path / ".lock")
        if not locks.taken(file):
            with file:
                locks.claim(file)
                raise InUse(
                    f"the run folder {self.path} is in use by {locks.holder(file)}: wait for it, stop it, or give this "
                    f"run another name with run_name=..."
                )
        self._lock_file = file

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock during a block; raises UserError as `lock`."""
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock_file is not None

    def is_locked(self) -> bool:
        """Whether another live process holds the lock. This only asks, so it needs no permission to write."""
        # not of a held one: opening and closing the file again would release it
        return not self.is_held and locks.taken_elsewhere(self.path / ".lock")

    def process_is_gone(self) -> bool:
        """Whether the status says that the run is running although no process holds the folder."""
        return self.status().get("state") == "running" and not self.is_locked()

    def store_or_check_config(self, config: dict[str, Any]) -> None:
        """Store the configuration at the first start; later, check that it gives the same result.

        Raises:
            UserError: if it differs, and the message lists the differences; or if it is damaged.
        """
        if not self.check_config(config):
            write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))

    def check_config(self, config: dict[str, Any]) -> bool:
        """Check that a configuration gives the same result as the stored one; returns whether there is one.

        Raises:
            UserError: as `store_or_check_config`.
        """
        if not (self.path / "config.yaml").exists() and not self.status():
            return False
        # What a file of the user's leaves out, such as a schedule of the optimizer, has the same default in both.
        if changes := differences(self.config(upgraded), upgraded(config)):
            raise UserError(
                f"the run in {self.path} was started with another configuration (config.yaml):\n  "
                + "\n  ".join(changes)
                + "\nGive this run another name with run_name=..., or go back to the configuration it was started with"
            )
        return True

    # Of the files below, each raises DamagedFile if it cannot be read, of which NotReadable is a case.

    def config(self, convert: Callable[[Any], dict[str, Any]] = dict) -> dict[str, Any]:
        """Content of config.yaml, in plain types, passed through `convert`."""
        remedy = "restore it, or give this run another name with run_name=..."
        return stored_config(self.path / "config.yaml", remedy, convert)

    def status(self) -> Status:
        """Content of status.json; empty before the first start."""
        path, remedy = self.path / "status.json", "move it away, then the run continues from its last checkpoint"
        if (status := read_json(path, Status, remedy)) is None:
            return {}
        result = status.get("result", {})
        lacks = "state" not in status or (status["state"] == "finished") > (status.get("metric") in result)
        if lacks or not all(abs(value) <= sys.float_info.max for value in result.values()):
            raise DamagedFile(path, "it lacks the state, or a finite result", remedy)
        return status

    def starts(self) -> list[Start]:
        """The entries of all starts in environment.json."""
        remedy = "move it away, then only the record of earlier starts is lost"
        environment = read_json(self.path / "environment.json", _Environment, remedy)
        return environment["starts"] if environment else []

    def last_start(self) -> Start:
        """The entry of the last start in environment.json; empty before the first start."""
        return (self.starts() or [Start()])[-1]

    def evaluations(self) -> dict[str, dict[str, int | float]]:
        """Content of evaluations.json: the metrics of the evaluations during training, by step."""
        remedy = "move it away, then the run goes on without the evaluations so far"
        return read_json(self.path / "evaluations.json", dict[str, dict[str, int | float]], remedy) or {}

    def tracked(self) -> Tracked | None:
        """Content of mlflow.json; None for a run without MLflow."""
        remedy = "move it away, then the run is sent again, as a new MLflow run"
        return read_json(self.path / "mlflow.json", Tracked, remedy)

    def state(self) -> RunState:
        """The state as far as the folder tells it: a stored one, "new", "damaged", or "unknown" to this user."""
        try:
            return "vanished" if self.process_is_gone() else self.status().get("state", "new")
        except NotReadable:
            return "unknown"
        except DamagedFile:
            return "damaged"

    def check_kept(self) -> None:
        """Raise CannotWrite if this folder was deleted or renamed since it was locked; another may have its name.

        Raises:
            TakenOver: if a restart of this job has it, or waits for it.
        """
        if self._lock_file is None:
            return
        lock = self.path / ".lock"
        with writing(self.path):
            if not (lock.exists() and os.path.samestat(lock.stat(), os.fstat(self._lock_file.fileno()))):
                raise CannotWrite(
                    self.path, FileNotFoundError(errno.ENOENT, "it was deleted or renamed during the run")
                )
            if (owner := locks.owner(self._lock_file)) not in ("", locks.this_process()):
                raise TakenOver(self.path, owner)

    def set_status(self, state: StoredState, **fields: Any) -> None:
        """Replace status.json; raises CannotWrite."""
        self.check_kept()
        process = {"host": socket.gethostname(), "pid": os.getpid(), **this_job()}
        write_json(self.path / "status.json", {"state": state, **fields, **process})


def as_begun(spec: RunSpec) -> RunSpec:
    """In a restart of a SLURM job: the run with the configuration that it began with, if that was edited meanwhile."""
    folder = RunFolder(Path(spec.config["run_dir"]))
    if not this_job().get("restarts") or not (folder.path / "config.yaml").is_file():
        return spec
    begun = folder.config(upgraded)
    if not (changes := differences(begun, spec.config)):
        return spec
    log.warning("the configuration was edited since this run began; the restart of its job uses the one that it began "
                "with, not %s", ", ".join(changes))  # fmt: skip
    return spec.as_begun(begun)
