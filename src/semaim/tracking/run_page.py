"""What a run says of itself in MLflow: the tags that it is found by, and the description on its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semaim.config.run_spec import RunSpec
from semaim.core.files import read_json

NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description, in Markdown
MOST_CHARACTERS = 8000  # that MLflow keeps of a tag


def last_start(folder: Path) -> dict[str, Any]:
    """What environment.json says of the last start of a run."""
    start: dict[str, Any] = read_json(folder / "environment.json")["starts"][-1]
    return start


def tags(spec: RunSpec, start: Mapping[str, Any]) -> dict[str, str]:
    """What a run is found by.

    Args:
        job: its configuration and choices.
        start: where and with what it was started last.
    """
    about = {name: start[name] for name in ("commit", "dirty", "host", "device")} | {"command": spec.command}
    about |= spec.parts | {f"slurm.{name}": value for name, value in start.get("slurm", {}).items()}
    return {name: str(value) for name, value in about.items() if value is not None}


def description(
    spec: RunSpec, start: Mapping[str, Any], look_at: Mapping[str, str], result: Mapping[str, float] | None
) -> str:
    """A run in Markdown: what it is, the command that repeats it, where it is, what to look at.

    Args:
        job: its configuration and choices.
        start: where and with what it was started last.
        look_at: what is worth a look on its page, and why.
        result: what came out; None as long as it runs.
    """
    config = spec.config
    chosen = ", ".join(f"{group} `{choice}`" for group, choice in spec.parts.items() if group != "task")
    facts = {"run folder": f"`{Path(config['run_dir']).absolute()}` (on {start['host']})"}
    if checkpoint := config.get("checkpoint"):
        facts["checkpoint"] = f"`{checkpoint}`"
    if config["parent_run"] is not None:
        facts["shown under"] = f"`{Path(config['parent_run']).name}`"
    if config["then"]:
        facts["followed by"] = f"{', '.join(config['then'])}, shown under this run"
    changed = ", with changes" if start["dirty"] else ""
    facts["code"] = f"commit {start['commit']}{changed}" if start["commit"] else f"semaim {start['semaim']}"
    parts = [
        f"**{spec.choices['task']}** with {chosen}, seed {config['seed']}",
        command_block(spec.command, start["folder"]),
        "\n".join(f"* {what}: {value}" for what, value in facts.items()),
    ]
    if look_at:
        parts.append("\n".join(["What to look at:", "", *(f"* **{what}**: {why}" for what, why in look_at.items())]))
    if result is not None:
        parts.append(
            markdown_table([("result", ""), *((name, format_number(value)) for name, value in result.items())])
        )
    return "\n\n".join(parts)


def command_block(command: str, folder: str) -> str:
    """A command, and where to type it."""
    return f"To repeat or continue it, in `{folder}`:\n\n```bash\n{command}\n```"


def markdown_table(rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown; the first row is its head."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *rest])


def format_number(value: float) -> str:
    """A result for people."""
    return format(value, ".4g")
