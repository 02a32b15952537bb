"""Tracking by Weights & Biases: a server, or a folder in the run folder that is sent to it later."""

from __future__ import annotations

import shlex
import shutil
import uuid
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from semaim.core.files import read_json, write_json
from semaim.core.formatting import relative_to_cwd
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Line, read
from semaim.tracking.run_page import NOTE
from semaim.tracking.tracker import BackgroundCopy, check_installed

FILE = "wandb.json"  # in the run folder: the id of the run


class _Tracked(TypedDict):
    id: str


class WandB(BackgroundCopy):
    """Tracking by Weights & Biases.

    A run has one id, which is kept in its folder, so a run that continues goes on in the same page. Line n of the
    journal is step n of wandb, and the charts are over the metric `step`. wandb leaves out steps that it has already,
    so each point is there once. Offline, every start makes the copy anew from the journal, in place of the former one.

    Args:
        project, entity: as in wandb; entity null is the user's own.
        mode: "online", "offline" (a folder, sent by `wandb sync`) or "disabled".
        flush_seconds, system_metrics_seconds: see `BackgroundCopy`.

    Raises:
        UserError: if wandb is not installed, or knows no API key for mode="online".
    """

    name = "wandb"

    def __init__(
        self, project: str, entity: str | None, mode: str, flush_seconds: float, system_metrics_seconds: float
    ) -> None:
        super().__init__(flush_seconds, system_metrics_seconds)
        check_installed("wandb", self.name)
        self.project, self.entity, self.mode = project, entity, mode
        self._position = self._line = 0
        self._run: Any = None
        if mode == "online":
            import wandb

            if not wandb.login(prompt=False, verify=False):
                raise UserError(
                    "tracking.mode=online: wandb knows no API key: type wandb login, or set WANDB_API_KEY or "
                    "tracking.mode=offline"
                )

    def open(self) -> None:
        """Choose the id of the run; the server is first asked by the thread."""
        import wandb  # noqa: F401 - imported here, before loader processes are forked

        file = self.folder.path / FILE
        if (known := read_json(file, _Tracked, "move it away, then the run is sent again, as a new one")) is None:
            write_json(file, known := _Tracked(id=uuid.uuid4().hex[:8]))
        self.id = known["id"]

    def _open_run(self) -> Any:
        import wandb

        for former in self._offline_folders(self.folder):
            shutil.rmtree(former)
        config = self.folder.config()
        parent = config.get("parent_run")
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=str(self.folder.path),
            id=self.id,
            name=self.folder.path.name,
            group=parent and Path(parent).name,
            config={**config, "choices": self.folder.last_start().get("choices", {})},
            mode=self.mode,  # type: ignore[arg-type]
            resume="allow",
            reinit="create_new",  # beside runs that the user's own code may have
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric("*", step_metric="step")
        return run

    def sent(self) -> int:
        return self._position

    def deliver(self, last: bool) -> None:
        """Send the new lines of the journal, and at the end the results."""
        if self._run is None:
            self._run = self._open_run()
            self._first = self._run.step  # wandb has the lines before
        for offset, line in read(self.folder.journal, self._position):
            self._send(line)
            self._position, self._line = offset, self._line + 1
        if last:
            self._run.summary.update({f"result/{k}": v for k, v in self.folder.status().get("result", {}).items()})
            self._run.finish(exit_code=0 if self.folder.status().get("state") == "finished" else 1)

    def _send(self, line: Line) -> None:
        import wandb

        new: dict[str, Any] = dict(line.get("metrics", {}))
        if (image := line.get("image")) and (file := self.folder.path / image["file"]).is_file():
            new[image["key"]] = wandb.Image(str(file))
        if new and self._line >= self._first:
            self._run.log({"step": line["step"], **new}, step=self._line)
        if (note := line.get("tags", {}).get(NOTE)) is not None:
            self._run.notes = note

    def _offline_folders(self, folder: RunFolder) -> list[Path]:
        return sorted((folder.path / "wandb").glob(f"offline-run-*-{self.id}"))

    def view_commands(self, folder: RunFolder, compare: bool = False) -> dict[str, str]:
        if self.mode == "offline":
            copies = [str(relative_to_cwd(each)) for each in self._offline_folders(folder)]
            return {"send it": shlex.join(["wandb", "sync", *copies])} if copies else {}
        return {"look at it": self._run.url} if self._run is not None and self._run.url else {}
