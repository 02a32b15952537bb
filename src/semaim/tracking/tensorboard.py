"""Tracking by TensorBoard: event files in the run folder."""

from __future__ import annotations

import shlex
from typing import Any

from semaim.config.naming import flatten
from semaim.core.formatting import relative_to_cwd
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Line, read
from semaim.tracking.run_page import NOTE
from semaim.tracking.tracker import BackgroundCopy, check_installed

FOLDER = "tensorboard"  # in the run folder
HPARAMS = (int, float, str, bool)  # types that TensorBoard's table of runs accepts


class TensorBoard(BackgroundCopy):
    """Tracking by TensorBoard, which needs no server.

    Every start makes the event file anew from the journal, so each point is in it once, however the start before ended.
    Scalars have the names and steps of the journal, and the results are `result/<name>`, also in the table HPARAMS.

    Args:
        flush_seconds, system_metrics_seconds: see `BackgroundCopy`.

    Raises:
        UserError: if TensorBoard is not installed.
    """

    name = "TensorBoard"

    def __init__(self, flush_seconds: float, system_metrics_seconds: float) -> None:
        super().__init__(flush_seconds, system_metrics_seconds)
        check_installed("tensorboard", self.name)
        self._position = 0
        self._last_step = 0

    def open(self) -> None:
        """Begin the event file; a TensorBoard that shows the former one leaves its points out (`purge_step`)."""
        from torch.utils.tensorboard import SummaryWriter

        place = self.folder.path / FOLDER
        for former in place.glob("events.out.tfevents.*"):
            former.unlink()
        self.writer = SummaryWriter(str(place), purge_step=0)

    def sent(self) -> int:
        return self._position

    def deliver(self, last: bool) -> None:
        """Write the new lines of the journal, and at the end the results."""
        for offset, line in read(self.folder.journal, self._position):
            self._write(line)
            self._position = offset
        if last:
            self._write_results()
            self.writer.close()
        else:
            self.writer.flush()

    def _write(self, line: Line) -> None:
        seconds, step = line["time"] / 1000, line.get("step", 0)
        for name, value in line.get("metrics", {}).items():
            self.writer.add_scalar(name, value, step, seconds)
            self._last_step = max(self._last_step, step)
        if (note := line.get("tags", {}).get(NOTE)) is not None:
            self.writer.add_text("description", note, 0, seconds)
        if image := line.get("image"):
            file = self.folder.path / image["file"]
            if file.is_file():
                self.writer.add_image(image["key"], _pixels(file), step, seconds, dataformats="HWC")

    def _write_results(self) -> None:
        from torch.utils.tensorboard.summary import hparams

        result = {f"result/{name}": value for name, value in self.folder.status().get("result", {}).items()}
        for name, value in result.items():
            self.writer.add_scalar(name, value, self._last_step)
        options = {k: v if isinstance(v, HPARAMS) else str(v) for k, v in flatten(self.folder.config()).items()}
        choices = self.folder.last_start().get("choices", {})
        for summary in hparams({**choices, **options}, dict.fromkeys(result, 0)):
            self.writer._get_file_writer().add_summary(summary)

    def view_commands(self, folder: RunFolder, compare: bool = False) -> dict[str, str]:
        return {"look at it": shlex.join(["tensorboard", "--logdir", str(relative_to_cwd(folder.path.parent))])}


def _pixels(file: Any) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
