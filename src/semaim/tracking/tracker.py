"""What every tracker has in common: the thread that copies the journal, so that training never waits."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from semaim.core.files import if_possible
from semaim.core.formatting import plural
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal, read

log = logging.getLogger(__name__)


class Tracker:
    """What a run and a sweep ask of their tracker. This one does nothing."""

    def start(self, folder: RunFolder, journal: Journal) -> None:
        """Start to copy the journal of a run."""

    def finish(self, wait: bool = True) -> None:
        """Copy the rest, and wait for that unless told not to."""

    def prepare(self, folder: RunFolder) -> None:
        """Create what the runs of a sweep are shown under."""

    def run_folder(self, run_id: str) -> Path:
        """The folder of a run in MLflow; no other tracker looks it up.

        Raises:
            UserError: always.
        """
        raise UserError(f"checkpoint=mlflow:{run_id} needs a tracking store to look it up in: tracking=mlflow")

    def view_commands(self, folder: RunFolder, compare: bool = False) -> dict[str, str]:
        """Commands that show a run, by purpose; `compare` asks for the runs of this sweep."""
        return {}

    def report_command(self) -> str | None:
        """The command that writes the table of all evaluations."""
        return None


class BackgroundCopy(Tracker):
    """A tracker that receives a copy of the journal from a background thread.

    Args:
        flush_seconds: longest wait for the last delivery at the end of a run.
        system_metrics_seconds: seconds between samples of CPU, memory and GPU use; 0 for none.
    """

    INTERVAL_SECONDS = 2.0
    RETRY_SECONDS = 15.0
    name: str  # for messages

    def __init__(self, flush_seconds: float, system_metrics_seconds: float) -> None:
        self.flush_seconds = flush_seconds
        self.system_metrics_seconds = system_metrics_seconds
        self.folder: RunFolder
        self._finishing = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Prepare the delivery of `self.folder`, before loader processes are forked: libraries are imported here."""
        raise NotImplementedError

    def deliver(self, last: bool) -> None:
        """Send what is new in the journal; any error is retried. After the `last` delivery there is no other."""
        raise NotImplementedError

    def sent(self) -> int:
        """Number of bytes of the journal that are sent."""
        raise NotImplementedError

    def remedy(self) -> str:
        """How to send what is left at the end of a run."""
        return "they are sent when the run continues"

    def reason(self, error: Exception) -> str:
        """Why a delivery failed, in one line."""
        return str(error).strip().partition("\n")[0] or type(error).__name__

    def start(self, folder: RunFolder, journal: Journal) -> None:
        """Start the delivery thread."""
        self.folder = folder
        self.open()
        name = f"{type(self).__name__.lower()}-delivery"
        self._thread = threading.Thread(target=self._deliver_until_finished, args=(journal,), daemon=True, name=name)
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
                self.deliver(finishing)
                if not reachable:
                    log.info("%s is reachable again; everything so far is delivered", self.name)
                reachable = True
            except Exception as error:  # no tracking error may end training
                if reachable:
                    log.warning("%s does not accept the metrics (%s); they are kept and sent later",
                                self.name, self.reason(error))  # fmt: skip
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
            unsent = sum(1 for _ in read(self.folder.journal, self.sent()))
            if unsent or self._thread.is_alive():
                log.warning("%s not yet sent to %s; %s", plural(unsent, "journal line"), self.name, self.remedy())
            self._thread = None


def check_installed(package: str, title: str) -> None:
    """Raise UserError if the package of a tracker is missing; `title` is the tracker's name."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{title} is not installed: pip install {package}, or run with tracking=none")


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
