"""The folder of a run: its name, its lock, its configuration and its status.

runs/<name>/config.yaml         the configuration with interpolations resolved
            environment.json    commit, versions and machine of every start
            status.json         state, step, result or error
            metrics.jsonl       the journal
            checkpoints/        see semaim.checkpoints.store
            run.log             log output
            mlflow.json         id of the MLflow run, and the delivered part of the journal
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from semaim.config.naming import differences
from semaim.config.old_versions import upgraded
from semaim.core.files import read_json, write_json, write_text
from semaim.core.slurm_job import this_job
from semaim.errors import UserError
from semaim.runs.status import RunState, Status, StoredState

log = logging.getLogger(__name__)


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
            UserError: if the folder cannot be created, or another process has locked it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 - open until unlock
        except OSError as error:
            raise UserError(f"the run folder {self.path} cannot be made ({error}): set runs_dir") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"the run folder {self.path} is in use by {holder}: wait for it, stop it, or give this run another "
                f"name with run_name=..."
            ) from None
        except OSError as error:
            log.warning(
                "the file system of %s has no locks (%s): take care not to start this run twice", self.path, error
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
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
        """Whether another live process holds the lock."""
        if self.is_held:  # opening and closing the file again would release the lock
            return False
        try:
            with open(self.path / ".lock", "r+", encoding="utf-8") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def process_is_gone(self) -> bool:
        """Whether the status says that the run is running although no process holds the folder."""
        return self.status().get("state") == "running" and not self.is_locked()

    def store_or_check_config(self, config: dict[str, Any]) -> None:
        """Store the configuration at the first start; later, check that it gives the same result.

        Raises:
            UserError: if it differs; the message lists the differences.
        """
        path = self.path / "config.yaml"
        if not path.exists():
            write_text(path, OmegaConf.to_yaml(OmegaConf.create(config)))
            return
        changes = differences(upgraded(OmegaConf.to_container(OmegaConf.load(path))), config)
        if changes:
            raise UserError(
                f"the run in {self.path} was started with another configuration:\n  "
                + "\n  ".join(changes)
                + "\nGive this run another name with run_name=..., or go back to the configuration it was started with"
            )

    def status(self) -> Status:
        """Content of status.json; empty before the first start."""
        status: Status | None = read_json(self.path / "status.json")
        return status or {}

    def last_start(self) -> dict[str, Any]:
        """The entry of the last start in environment.json; empty before the first start."""
        return (read_json(self.path / "environment.json") or {"starts": [{}]})["starts"][-1]

    def state(self) -> RunState:
        """The state as far as the folder tells it: a stored one, or "new"."""
        return "vanished" if self.process_is_gone() else self.status().get("state", "new")

    def set_status(self, state: StoredState, **fields: Any) -> None:
        """Replace status.json."""
        process = {"host": socket.gethostname(), "pid": os.getpid(), **this_job()}
        write_json(self.path / "status.json", {"state": state, **fields, **process})
