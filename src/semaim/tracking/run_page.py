"""Tags and description of a run in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semaim.config.run_spec import RunSpec
from semaim.core.formatting import printable
from semaim.core.tables import markdown_table
from semaim.tracking.lineage import origin_of

NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description, in Markdown
MAX_TAG_CHARACTERS = 8000  # MLflow truncates longer tags


def tags(spec: RunSpec, start: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a run: its method, its choices, code version, host, device, SLURM job, and the run that it came from.

    Args:
        spec: its configuration and choices.
        start: its last start (`RunFolder.last_start`).
    """
    values = {name: start[name] for name in ("commit", "dirty", "host", "device", "processes")} | {
        "command": spec.command
    }
    if "method" in start:
        values["method"] = start["method"]
    if (origin := origin_of(spec.config)) is not None:
        values |= origin.tags
    values |= spec.parts | {f"slurm.{name}": value for name, value in start.get("slurm", {}).items()}
    values |= source_tags(start, "semaim run")
    return {name: str(value) for name, value in values.items() if value is not None}


def source_tags(start: Mapping[str, Any], name: str) -> dict[str, str]:
    """The tags of MLflow's columns Source, Version and User.

    Args:
        start: an entry of environment.json.
        name: what started it.
    """
    values = {
        "mlflow.source.name": name,
        "mlflow.source.type": "JOB" if "slurm" in start else "LOCAL",
        "mlflow.source.git.commit": start.get("commit"),
        "mlflow.source.git.branch": start.get("branch"),
        "mlflow.source.git.repoURL": start.get("repository"),
        "mlflow.user": start.get("user"),
    }
    return {key: value for key, value in values.items() if value}


def description(
    spec: RunSpec, start: Mapping[str, Any], highlights: Mapping[str, str], result: Mapping[str, float] | None
) -> str:
    """Description of a run in Markdown: choices, command, run folder, what to look at, result.

    Args:
        spec: its configuration and choices.
        start: its last start (`RunFolder.last_start`).
        highlights: metrics and artifacts to look at, with a description.
        result: its result; None while it runs.
    """
    config = spec.config
    choices = ", ".join(f"{group} `{choice}`" for group, choice in spec.parts.items() if group != "task")
    facts = {"method": start["method"]} if "method" in start else {}
    facts["run folder"] = f"`{printable(str(Path(config['run_dir']).absolute()))}` (on {start['host']})"
    if (origin := origin_of(config)) is not None:
        facts[origin.label] = origin.text
    elif checkpoint := config.get("checkpoint"):
        facts["checkpoint"] = f"`{printable(str(checkpoint))}`"
    if config["parent_run"] is not None:
        facts["shown under"] = f"`{printable(Path(config['parent_run']).name)}`"
    if config["then"]:
        facts["followed by"] = f"{', '.join(config['then'])}, shown under this run"
    suffix = ", with changes" if start["dirty"] else ""
    facts["code"] = f"commit {start['commit']}{suffix}" if start["commit"] else f"semaim {start['semaim']}"
    parts = [
        f"**{spec.choices['task']}** with {choices}, seed {config['seed']}",
        command_block(spec.command, start["folder"]),
        "\n".join(f"* {what}: {value}" for what, value in facts.items()),
    ]
    if highlights:
        parts.append("\n".join(["What to look at:", "", *(f"* **{what}**: {why}" for what, why in highlights.items())]))
    if result is not None:
        parts.append(markdown_table([("result", ""), *((name, f"{value:.4g}") for name, value in result.items())]))
    return "\n\n".join(parts)


def command_block(command: str, folder: str) -> str:
    """A command, and the folder to run it in."""
    return f"To repeat or continue it, in `{folder}`:\n\n```bash\n{command}\n```"
