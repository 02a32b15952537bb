"""Runs that go on from the end of another one: `extend=runs/<name> trainer.epochs=...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semaim.checkpoints import store
from semaim.config.naming import differences, is_part
from semaim.config.old_versions import upgraded
from semaim.config.validate import shown
from semaim.core.formatting import program, scientific
from semaim.errors import UserError
from semaim.runs.folder import RunFolder

# What may change, besides options that never affect the result. Other options of the optimizer are part of its state.
CHANGEABLE = (
    "trainer.epochs",
    "trainer.flops",
    "trainer.warmup_epochs",
    "trainer.clip_grad",
    "optimizer.base_lr",
    "optimizer.min_lr",
    "optimizer.schedule",
    "task.evaluators",
)
OF_THE_START = ("extend", "checkpoint")


def check_extension(folder: RunFolder, config: dict[str, Any]) -> None:
    """Check that a run can go on from the run that its configuration extends; only before its own first checkpoint.

    Args:
        folder: of the new run.
        config: its configuration.

    Raises:
        UserError: if the other run is not finished, is as long, has no checkpoints, or trained something else.
    """
    if config.get("extend") is None or store.list_steps(folder.checkpoints):
        return
    given, old = f"extend={shown(config['extend'])}", RunFolder(Path(config["extend"]))
    before, status = old.config(upgraded), old.status()
    if status.get("state") != "finished":
        raise UserError(
            f"{given} is not finished ({old.state()}): type its own command, which continues it. "
            f"{program('again', config['extend'])} does so"
        )
    if status.get("asked", {}).get("max_steps") is not None:
        raise UserError(
            f"{given} stopped at trainer.max_steps={status['asked']['max_steps']}, before its end: its own command "
            f"continues it with another limit. {program('again', config['extend'], 'trainer.max_steps=null')} does so"
        )
    changes = [
        change
        for change in differences(before, config)
        if not any(is_part(change.split(":")[0], name) for name in (*CHANGEABLE, *OF_THE_START))
    ]
    if changes:
        raise UserError(
            f"{given} continues a training, so this cannot change:\n  "
            + "\n  ".join(changes)
            + f"\nOnly {', '.join(CHANGEABLE)} can, and options that do not affect the result. To start another "
            f"training from its weights, type checkpoint={shown(config['extend'])} in place of {given}"
        )
    measure = "epochs" if before["trainer"]["flops"] is None else "flops"
    done, asked = before["trainer"][measure], config["trainer"][measure]
    if asked is None or asked <= done:
        typed = next(name for name in ("flops", "epochs") if config["trainer"][name] is not None)
        raise UserError(
            f"trainer.{typed}={_shown(config['trainer'][typed])}: {given} has trained for {_shown(done)} already; give "
            f"more, such as trainer.{measure}={_shown(2 * done)}"
        )
    if not store.list_steps(old.checkpoints):
        raise UserError(f"{given} has no checkpoints any more, so there is no state to go on from")


def _shown(length: float) -> str:
    """A number of epochs or operations, as it is typed."""
    return str(length) if isinstance(length, int) else scientific(length)
