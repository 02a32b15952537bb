"""Tracking of runs: MLflow, with delivery in a background thread that does not block training, or none."""

from __future__ import annotations

import logging
from pathlib import Path

from semaim.core.formatting import program, relative_to_cwd
from semaim.core.store_address import SQLITE, check_experiment
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.tracking.delivery import Delivery
from semaim.tracking.pages import run_page_commands
from semaim.tracking.store import (
    existing_store,
    failure_reason,
    mlflow_errors,
    name_store,
    naming,
    sync_command,
)
from semaim.tracking.tracker import BackgroundCopy, Tracker, check_installed

log = logging.getLogger(__name__)
REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")  # error codes of a server


class MLflow(BackgroundCopy):
    """Tracking by MLflow.

    Args:
        uri: tracking store: a SQLite file (relative to the working directory) or a server.
        experiment: name of the MLflow experiment (both: see `semaim.core.store_address`).
        flush_seconds: longest wait for the last delivery at the end of a run.
        system_metrics_seconds: seconds between samples of CPU, memory and GPU use; 0 for none.

    Raises:
        UserError: if MLflow is not installed, or for an address or a name that is not accepted.
    """

    def __init__(self, uri: str, experiment: str, flush_seconds: float, system_metrics_seconds: float) -> None:
        super().__init__(flush_seconds, system_metrics_seconds)
        check_installed("mlflow", "MLflow")
        self.address = name_store("tracking.uri", uri)
        check_experiment("tracking.experiment", experiment)
        self.uri = uri
        self.experiment = experiment
        self.name = f"MLflow at {uri}"

    def open(self) -> None:
        """Name the store in the run folder."""
        import mlflow  # noqa: F401 - imported here, not in the thread, before loader processes are forked

        self.delivery = Delivery(self.folder, self.uri, self.experiment)

    def deliver(self, last: bool) -> None:
        """Send what is new in the run folder."""
        self.delivery.deliver()

    def sent(self) -> int:
        return int(self.delivery.state["sent"])

    def remedy(self) -> str:
        return f"send them with: {sync_command(self.folder.path, self.address)}"

    def reason(self, error: Exception) -> str:
        return failure_reason(self.uri, error)

    def prepare(self, folder: RunFolder) -> None:
        """Create the MLflow run of a sweep's folder now, with its store and experiment if they do not exist.

        If a server does not answer, this is a warning: the first run to reach the server does it.

        Raises:
            UserError: if a server refuses it, a file cannot be written, or the experiment is deleted.
        """
        delivery = Delivery(folder, self.uri, self.experiment)  # from now on all runs know the same parent run
        try:
            delivery.deliver()
        except UserError:
            raise
        except Exception as error:  # MLflow and its dependencies raise many types
            reason = failure_reason(self.uri, error)
            if self.address.startswith(SQLITE) or getattr(error, "error_code", "") in REFUSED:
                raise UserError(f"tracking.uri={self.uri}: {reason}; or set tracking=none") from error
            sync = f"{program('sync', *naming(self.address))} {relative_to_cwd(folder.path.parent)}/*"
            log.warning("MLflow at %s does not answer (%s); the sweep starts all the same. Its runs send it and "
                        "themselves later; what is left then, send with: %s", self.uri, reason, sync)  # fmt: skip

    def run_folder(self, run_id: str) -> Path:
        """The folder of a tracked run.

        Raises:
            UserError: if the store does not have the run, or its folder is not on this machine.
        """
        from mlflow import MlflowClient

        missing = f"checkpoint=mlflow:{run_id}: MLflow at {self.uri} has no such run ({{reason}})"
        with mlflow_errors(self.uri, missing):
            tags = MlflowClient(existing_store(self.address)).get_run(run_id).data.tags
        folder = Path(tags.get("run_folder", ""))
        if "run_folder" not in tags or not folder.is_dir():
            raise UserError(f"checkpoint=mlflow:{run_id}: its run folder ({folder}) is not on this machine")
        return folder

    def view_commands(self, folder: RunFolder, compare: bool = False) -> dict[str, str]:
        """Commands that show a run, by purpose."""
        return run_page_commands(self.address, folder, compare)

    def report_command(self) -> str | None:
        """The command that writes the table of all evaluations."""
        return program("report", *naming(self.address))


class NoTracking(Tracker):
    """No tracking besides the journal; MLflow need not be installed."""
