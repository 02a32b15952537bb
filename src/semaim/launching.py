"""`semaim.launch`: what `semaim run` does, from Python, such as in a notebook."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from semaim.config.compose import quoted_home
from semaim.config.effects import without_effect
from semaim.config.follow_ups import follow_ups
from semaim.config.messages import explain
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.core.formatting import program, relative_to_cwd, result_lines
from semaim.core.signals import interruptible, interruption_or
from semaim.errors import Interrupted, UserError
from semaim.runs.folder import RunFolder, as_begun
from semaim.runs.journal import read

if TYPE_CHECKING:
    from pandas import DataFrame

    from semaim.models.predictor import Predictor

log = logging.getLogger("semaim")
_one_at_a_time = threading.Lock()  # a run sets what a process has once: signal handlers, random generators, logging


@dataclass(frozen=True, repr=False)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        metrics: its results, by name.
        follow_ups: the results of the evaluations of `then=`, by task.
    """

    folder: Path
    metrics: dict[str, float]
    follow_ups: dict[str, RunResult] = field(default_factory=dict)

    @cached_property
    def model(self) -> Predictor:
        """The pretrained model, loaded when it is asked for: `semaim.load_model(result.folder)`.

        Of an evaluation that trains nothing, such as task=knn, it is the model that was evaluated.

        Raises:
            UserError: if there is no pretrained model, such as after task=finetune.
        """
        from semaim.checkpoints.pretrained import load_model

        run = RunFolder(self.folder)
        return load_model(run.path if run.checkpoints.is_dir() else str(run.config()["checkpoint"]))

    def history(self) -> DataFrame:
        """The metrics of the journal as a table: a row for each step, a column for each metric, NaN for no value.

        `result.history()["train/loss"].plot()` draws the loss. Samples of the machine's use are left out: they have no
        steps of training.
        """
        from pandas import DataFrame

        rows: dict[int, dict[str, float]] = {}
        for _, line in read(self.folder / "metrics.jsonl", 0):
            found = {name: value for name, value in line.get("metrics", {}).items() if not name.startswith("system/")}
            if found:
                rows.setdefault(line["step"], {}).update(found)
        return DataFrame.from_dict(rows, orient="index").sort_index().rename_axis("step")

    def __repr__(self) -> str:
        lines = [f"finished: {relative_to_cwd(self.folder)}", *result_lines(self.metrics)]
        for task, result in self.follow_ups.items():
            lines += [f"{task}: {relative_to_cwd(result.folder)}", *result_lines(result.metrics)]
        return "\n".join(lines)


def launch(*overrides: str, config_dir: str | Path | None = None) -> RunResult:
    """Run what `semaim run` runs, in this process, and return the result.

    The same call finds its own run: it continues one that was stopped, and returns the result of a finished one at
    once. An interrupt of the notebook, like Ctrl-C, lets the run finish its step and save. The states of the random
    generators of torch, Python and NumPy are afterwards those from before the call.

    Args:
        overrides: options as on the command line, each a text: "model=aim_small", "then=[knn,linprobe]".
        config_dir: a configuration folder besides semaim's own (`--config-dir` of the command).

    Returns:
        the finished run.

    Raises:
        UserError: for a mistake, with the message of the command. Nothing is written.
        Interrupted: after an interrupt, when everything is saved.
        KeyboardInterrupt: if the run was interrupted at once.
    """
    with _short_errors(overrides), _alone(), interruptible():
        spec = _composed(overrides, config_dir)
        specs = [spec, *follow_ups(spec)]
        from semaim.core.seeding import generators_kept  # imports torch, after the configuration is checked

        with generators_kept():
            execute_all(specs)
        of_run, *others = (_result(each) for each in specs)
        of_run.follow_ups.update((each.choices["task"], result) for each, result in zip(specs[1:], others, strict=True))
        return of_run


def execute_all(specs: Sequence[RunSpec]) -> list[float]:
    """Execute a run and its follow-up runs in a session of their own; returns the values of their metrics."""
    from semaim.lifecycle import execute, session  # imports torch, after the configuration is checked

    cfg = specs[0].cfg
    with session(cfg.device, cfg.runs_dir) as (processes, stop):
        for message in without_effect(cfg, specs[0].overrides) if processes.is_main else ():
            log.warning(message)
        return [execute(as_begun(each), processes, stop) for each in specs]


@contextmanager
def _short_errors(words: Sequence[str]) -> Iterator[None]:
    """Raise what ends a run with the message of the command alone, without the way through the libraries.

    A fault of the program keeps its traceback.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as caught:
        error = interruption_or(caught)
        if isinstance(error, Interrupted | KeyboardInterrupt):
            error = type(error)(f"{error}; the same call continues")
        elif not isinstance(error, UserError):
            if (message := explain(error, words)) is None:
                raise
            error = UserError(message)
        raise error.with_traceback(None) from None


@contextmanager
def _alone() -> Iterator[None]:
    """Raise UserError while another thread of this process launches a run."""
    if not _one_at_a_time.acquire(blocking=False):
        raise UserError("another run of this process has not ended: wait for it, or start this one by a command")
    try:
        yield
    finally:
        _one_at_a_time.release()


def _composed(words: Sequence[str], config_dir: str | Path | None) -> RunSpec:
    """The run of these words; the user's own Hydra, if it is initialized, stays as it is.

    Raises:
        UserError: for what is no option of a single run.
        hydra.errors.HydraException: for a mistake that Hydra detects.
    """
    if others := [word for word in words if not isinstance(word, str)]:
        hint = "; the options of a list are given by launch(*options)" if isinstance(others[0], list | tuple) else ""
        raise UserError(f"{others[0]!r} is not a text: an option is typed 'option=value'{hint}")
    if flags := [word for word in words if word.startswith("-")]:
        command = program("run", *words)
        raise UserError(f"{flags[0]} is for the command line; launch starts one run, from its options: {command}")
    words = quoted_home(words)
    for override in OverridesParser.create().parse_overrides(list(words)):
        if override.is_sweep_override() or override.key_or_group.startswith("hydra"):
            what = "several values are a sweep" if override.is_sweep_override() else "this is for sweeps"
            raise UserError(f"{override.input_line}: {what}, which a command starts: {program('run', '-m', *words)}")
    folders = []
    if config_dir is not None:
        folder = Path(config_dir).expanduser().absolute()
        if not folder.is_dir():
            raise UserError(f"config_dir={str(config_dir)!r} is not a folder")
        folders = [f"file://{folder}"]
    users = GlobalHydra.instance().hydra
    try:
        return compose_run_spec(words, folders)
    finally:
        GlobalHydra.instance().hydra = users


def _result(spec: RunSpec) -> RunResult:
    folder = RunFolder(Path(spec.config["run_dir"]))
    return RunResult(folder.path, folder.status()["result"])
