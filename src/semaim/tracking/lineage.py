"""The run that a run came from, for its tags and its page in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from semaim.core.formatting import printable
from semaim.errors import UserError
from semaim.runs.folder import RunFolder

ORIGINS = {
    "extend": ("extended_from", "extends", "its whole state, at the end of its training"),
    "checkpoint": ("started_from", "started from", "its weights alone"),
}


class Origin(NamedTuple):
    """Where a run began.

    Attributes:
        tags: the name of the other run's folder, or the path of a file, and the id of its MLflow run if it has one.
        label, text: a line of the run's page, with a link to the other run's page if it is in the same store.
    """

    tags: dict[str, str]
    label: str
    text: str


def origin_of(config: Mapping[str, Any]) -> Origin | None:
    """Where a pretraining began, if another run or a file is named in its configuration."""
    option = next((name for name in ORIGINS if config.get(name) is not None), None)
    if option is None or "Pretraining" not in config["task"]["_target_"]:
        return None
    tag, label, what = ORIGINS[option]
    path = Path(config[option]).expanduser()
    folder = next((each for each in (path, *path.parents[:2]) if (each / "config.yaml").is_file()), None)
    if folder is None:
        return Origin({tag: str(path)}, label, f"`{printable(str(path))}` ({what})")
    name = folder.resolve().name
    tags, shown = {tag: name}, f"`{printable(name)}`"
    with suppress(UserError):  # a damaged mlflow.json
        if (tracked := RunFolder(folder).tracked()) is not None and tracked["run_id"]:
            tags[f"{tag}.run_id"] = tracked["run_id"]
            if tracked.get("uri") == config["tracking"].get("uri") and "experiment_id" in tracked:
                shown = f"[{shown}](#/experiments/{tracked['experiment_id']}/runs/{tracked['run_id']})"
    return Origin(tags, label, f"{shown} ({what})")
