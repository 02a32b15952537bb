"""The command of a run or sweep with changes: `semaim again runs/<name> option=value ...`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from semaim.config.compose import options, quoted_home
from semaim.config.naming import key_of, may_differ
from semaim.config.stored_command import stored_command, with_changes, words_of
from semaim.errors import UserError
from semaim.sweeps.sweep import FILE, Sweep

MLFLOW = "mlflow:"


def again(source: str, changes: Sequence[str]) -> list[str]:
    """The words after `semaim run` of the command of a run or sweep, with changes.

    Args:
        source: folder of the run or sweep, or `mlflow:<run id>`.
        changes: options and flags; an option replaces the one of its name, flags are added. If one of them affects the
            result, a name that was given to the run is left out.

    Raises:
        UserError: if there is no such run, or it is of another user.
    """
    folder = _folder(source, changes)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give the folder of a run or sweep, or mlflow:<run id>")
    if (folder / FILE).is_file():
        if (folder / FILE).stat().st_uid != os.getuid():
            raise UserError(f"{folder} is of another user, whose options could run any code as yours: if you trust "
                            f"them, type its command:\n  {Sweep.load(folder).command}")  # fmt: skip
        words = words_of(Sweep.load(folder).command, str(folder))
    else:
        words = stored_command(folder, str(folder))
        if not all(may_differ(key_of(change)) for change in changes):  # then it is another run, with its own name
            words = [word for word in words if key_of(word) not in ("run_name", "run_dir")]
    return with_changes(quoted_home(words), quoted_home(changes))


def _folder(source: str, changes: Sequence[str]) -> Path:
    if not source.startswith(MLFLOW):
        return Path(source).expanduser()
    store = [change for change in changes if key_of(change).startswith("tracking")]
    path: Path = instantiate(options(store).tracking, _convert_="all").run_folder(source.removeprefix(MLFLOW))
    return path
