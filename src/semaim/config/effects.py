"""Options of a command line that have no effect on its run.

What a task uses is known from its configuration: it refers to other groups and options by `${...}`. CONDITIONS lists
the options whose effect also depends on values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from semaim.config.compose import CONF
from semaim.config.naming import is_part
from semaim.config.schema import ORDERS

USED_BY_TASKS_ALONE = ("checkpoint", "images", "recipe")  # at the top of the configuration, beside the groups
NO_MAP = [order for order in ORDERS if not order.startswith("Attention")]

Read = Callable[[str], Any]  # the value of an option, null if there is none


def _new_model(read: Read) -> bool:
    return read("task.source") is None or read("checkpoint") == "random"


def _averages(read: Read) -> bool:
    return bool(read("trainer.ema")) or "ema" in (read("target.source"), read("semantic_map.source"))


def _draws_or_maps(read: Read) -> bool:
    order = str(read("permutation._target_")).rpartition(".")[2]
    return order not in NO_MAP or read("task.evaluators.pictures") is not None


# Options, whether they have an effect (they have one where this raises no doubt), and the reason if not.
CONDITIONS: tuple[tuple[tuple[str, ...], Callable[[Read], bool], str], ...] = (
    (("model",), _new_model, "the checkpoint determines the model"),
    (("target",), _new_model, "an evaluation has no target"),
    (
        ("data.train_transform.scale",),
        lambda read: read("task.trainer") is not None and read("task.train_transform") is None,
        "only pretraining uses it",
    ),
    (
        ("data.train_transform.flip",),
        lambda read: read("task.trainer") is not None,
        "nothing is trained",
    ),
    (("data.val_seed",), lambda read: read("data.val_fraction") is not None, "data.val_fraction=null"),
    (("target.blur_sigma",), lambda read: read("target.blur_kernel_size") != 0, "target.blur_kernel_size=0"),
    (("trainer.ema_decay", "trainer.ema_ramp_epochs"), _averages, "no moving average is kept (trainer.ema=true)"),
    (("semantic_map",), _draws_or_maps, "this order needs no semantic map"),
    (("optimizer.base_lr",), lambda read: read("task.base_lrs") is None, "task.base_lrs replaces it"),
    (("task.holdout", "task.seed"), lambda read: len(read("task.base_lrs") or ()) > 1, "task.base_lrs has no choices"),
    (
        (
            "optimizer", "trainer", "recipe", "task.train_transform", "task.drop_path", "task.mixup", "task.cutmix",
            "task.label_smoothing", "task.evaluate_every_epochs",
        ),
        lambda read: not read("task.eval_only"),
        "task.eval_only=true",
    ),
)  # fmt: skip


def without_effect(config: DictConfig, overrides: Sequence[str], is_sweep: bool = False) -> list[str]:
    """The overrides that have no effect, each with the reason.

    Args:
        config: the configuration that they give.
        overrides: of the command line, such as "trainer.epochs=3".
        is_sweep: whether the command starts a sweep.
    """
    raw: Any = OmegaConf.to_container(config)
    used = set(_used(raw))
    task = str(config.task._target_).rpartition(".")[2]
    found = []
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    last = {override.key_or_group: override for override in parsed}
    for override in parsed:
        key = override.key_or_group.split("@")[0]
        if (later := last[override.key_or_group]) is not override:
            found.append(f"{override.input_line} has no effect: {later.input_line} comes later")
            continue
        if override.is_hydra_override() or key.startswith(("hydra", "experiment", "evaluators")) or key == "task":
            continue
        if key == "size" and not {"method", "experiment"} & last.keys():
            found.append(f"{override.input_line} has no effect: it is for method=..., model=... has sizes of its own")
            continue
        key = "model" if key in ("method", "size") else key
        if reason := _reason(key, used, config, is_sweep, task):
            found.append(f"{override.input_line} has no effect: {reason}")
    return found


def _reason(key: str, used: set[str], config: DictConfig, is_sweep: bool, task: str) -> str | None:
    if not any(is_part(key, name) or is_part(name, key) for name in used):
        return f"{task} does not use it"
    if key.startswith("sweep") and not is_sweep:
        return "this is no sweep (-m)"

    def read(name: str) -> Any:
        return OmegaConf.select(config, name)

    for options, holds, reason in CONDITIONS:
        if any(is_part(key, name) for name in options) and not holds(read):
            return reason
    return None


def _used(raw: Mapping[str, Any]) -> Iterator[str]:
    """The options and groups that the program or the task uses, also through each other."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    waiting = [key for key in raw if key not in groups and key not in USED_BY_TASKS_ALONE]
    waiting += ["task", "tracking"]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        yield name
        node: Any = raw
        for part in name.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        waiting += re.findall(r"\$\{(?:oc\.select:)?([\w.]+)[,}]", str(node))
