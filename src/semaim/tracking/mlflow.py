"""Tracking of runs: MLflow, with delivery in a background thread that does not block training, or none."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from semaim.core.files import if_possible
from semaim.core.formatting import plural, program, relative_to_cwd
from semaim.core.store_address import SQLITE, check_experiment
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal, read
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

log = logging.getLogger(__name__)
REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")  # error codes of a server


class MLflow:
    """Tracking by MLflow.

    Args:
        uri: tracking store: a SQLite file (relative to the working directory) or a server.
        experiment: name of the MLflow experiment (both: see `semaim.core.store_address`).
        flush_seconds: longest wait for the last delivery at the end of a run.
        system_metrics_seconds: seconds between samples of CPU, memory and GPU use; 0 for none.

    Raises:
        UserError: if MLflow is not installed, or for an address or a name that is not accepted.
    """

    INTERVAL_SECONDS = 2.0
    RETRY_SECONDS = 15.0

    def __init__(self, uri: str, experiment: str, flush_seconds: float, system_metrics_seconds: float) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise UserError("MLflow is not installed: pip install mlflow, or run with tracking=none")
        self.address = name_store("tracking.uri", uri)
        check_experiment("tracking.experiment", experiment)
        self.uri = uri
        self.experiment = experiment
        self.flush_seconds = flush_seconds
        self.system_metrics_seconds = system_metrics_seconds
        self._finishing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, folder: RunFolder, journal: Journal) -> None:
        """Start the delivery thread."""
        import mlflow  # noqa: F401 - imported here, not in the thread, before loader processes are forked

        self.delivery = Delivery(folder, self.uri, self.experiment)
        self._thread = threading.Thread(
            target=self._deliver_until_finished, args=(journal,), daemon=True, name="mlflow-delivery"
        )
        self._thread.start()

    def _deliver_until_finished(self, journal: Journal) -> None:
        last_sample = 0.0
        retry_at = 0.0
        reachable = True
        while True:
            finishing = self._finishing.wait(self.INTERVAL_SECONDS)
            now = time.monotonic()
            if self.system_metrics_seconds and not finishing and now - last_sample >= self.system_metrics_seconds:
                last_sample = now
                with if_possible():
                    journal.log(journal.next_step("system/cpu_utilization_percentage"), system_metrics())
            if now < retry_at and not finishing:
                continue
            try:
                self.delivery.deliver()
                if not reachable:
                    log.info("MLflow at %s is reachable again; everything so far is delivered", self.uri)
                reachable = True
            except Exception as error:  # no tracking error may end training
                if reachable:
                    log.warning("MLflow at %s does not accept the metrics (%s); they are kept and sent later",
                                self.uri, failure_reason(self.uri, error))  # fmt: skip
                reachable, retry_at = False, now + self.RETRY_SECONDS
            if finishing:
                return

    def finish(self, wait: bool = True) -> None:
        """Deliver the rest within `flush_seconds`, unless told not to wait; warn if something remains unsent."""
        if self._thread is None:
            return
        self._finishing.set()
        try:
            self._thread.join(self.flush_seconds if wait else 0)
        finally:  # also after Ctrl-C
            folder = self.delivery.folder
            unsent = sum(1 for _ in read(folder.journal, self.delivery.state["sent"]))
            if unsent or self._thread.is_alive():
                log.warning("%s not yet sent to MLflow at %s; send them with: %s", plural(unsent, "journal line"),
                            self.uri, sync_command(folder.path, self.address))  # fmt: skip
            self._thread = None

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

    def view_commands(self, folder: RunFolder) -> dict[str, str]:
        """Commands that show a run, by purpose."""
        return run_page_commands(self.address, folder)

    def report_command(self) -> str | None:
        """The command that writes the table of all evaluations."""
        return program("report", *naming(self.address))


class NoTracking:
    """No tracking besides the journal; MLflow need not be installed."""

    def start(self, folder: RunFolder, journal: Journal) -> None:
        """Do nothing."""

    def finish(self, wait: bool = True) -> None:
        """Do nothing."""

    def prepare(self, folder: RunFolder) -> None:
        """Do nothing."""

    def run_folder(self, run_id: str) -> Path:
        """Not available without tracking.

        Raises:
            UserError: always.
        """
        raise UserError(f"checkpoint=mlflow:{run_id} needs a tracking store to look it up in: tracking=mlflow")

    def view_commands(self, folder: RunFolder) -> dict[str, str]:
        return {}

    def report_command(self) -> str | None:
        return None


def system_metrics() -> dict[str, float]:
    """Current resource use of this machine, under the names of MLflow's own system metrics."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    sample = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
        "system/disk_usage_percentage": psutil.disk_usage(os.getcwd()).percent,
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        device = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(device)
        sample[f"system/gpu_{device}_memory_usage_megabytes"] = (total - free) / 1e6
        sample[f"system/gpu_{device}_memory_usage_percentage"] = 100 * (1 - free / total)
        with suppress(ModuleNotFoundError, RuntimeError):  # needs NVIDIA's management library
            sample[f"system/gpu_{device}_utilization_percentage"] = torch.cuda.utilization(device)
    return sample
