"""What an evaluation takes from the run that made its checkpoint: the data and the seed.

`task=knn checkpoint=runs/<name>` is completed before composition, with options such as `data=folder data.root=/photos`.
What comes later sees an ordinary command line. What the user types comes first: `data=...` replaces all of the data,
`data.val_fraction=0.2` this option alone. Names and printed commands have the short form, without these options.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from semaim.config.compose import choices, composition, folder_path, is_choice, options
from semaim.config.naming import CheckpointName, checksum, key_of
from semaim.config.source_run import SourceRun, names_code, source_run, value_text
from semaim.core.formatting import quoted

MLFLOW = "mlflow:"


@dataclass(frozen=True)
class Inherited:
    """What an evaluation takes from the run that made its checkpoint.

    Attributes:
        run: folder of that run.
        overrides: its data and seed, as options.
        folders: additional configuration folders that its data need.
    """

    run: str
    overrides: list[str]
    folders: list[str]

    def __str__(self) -> str:
        keys = [key_of(word) for word in self.overrides]
        what = " and ".join(["data"] * ("data" in keys) + ["seed"] * ("seed" in keys))
        where = "".join(f" (--config-dir {quoted(folder_path(folder))})" for folder in self.folders)
        return f"{what} from {quoted(self.run)}: {' '.join(self.overrides)}{where}"


@dataclass(frozen=True)
class CommandLine:
    """The options of a run.

    Attributes:
        overrides: as typed, without those that an evaluation has from its checkpoint's run anyway.
        folders: additional configuration folders, as typed.
        inherited: what comes from that run; None if nothing does.
        checkpoint: its name in the name of an evaluation; None for other runs.
    """

    overrides: list[str]
    folders: list[str]
    inherited: Inherited | None = None
    checkpoint: CheckpointName | None = None

    @property
    def all_overrides(self) -> list[str]:
        """With those that are inherited."""
        return [*self.overrides, *(self.inherited.overrides if self.inherited else ())]

    @property
    def all_folders(self) -> list[str]:
        """With those that are inherited."""
        return [*self.folders, *(self.inherited.folders if self.inherited else ())]


def completed(words: Sequence[str], folders: Sequence[str] = (), source: SourceRun | None = None) -> CommandLine:
    """A command line with what an evaluation takes from the run that made its checkpoint.

    The result depends on the command line and on this run alone. Completing `all_overrides` again gives the same.

    Args:
        words: options of one run, without Hydra's own.
        folders: additional configuration folders.
        source: the run that makes the checkpoint, if it has no run folder yet.

    Raises:
        UserError: if the data of this run cannot be used; the message names the options to give.
    """
    plain = CommandLine(list(words), list(folders))
    try:
        parsed = {each.key_or_group: each for each in OverridesParser.create().parse_overrides(list(words))}
        checkpoints = _checkpoints(parsed.get("checkpoint"))
        if not checkpoints or any(each.is_sweep_override() for each in parsed.values()):
            return plain
        others = [each for key, each in parsed.items() if key != "data" and is_choice(each, folders)]
        chosen = [str(each.input_line) for each in others]
        cfg, default = options(chosen, folders), options((), folders)
    except (HydraException, OmegaConfBaseException):  # the composition reports it
        return plain
    if cfg.task._target_ == default.task._target_:  # pretraining, which starts from the checkpoint
        return plain
    runs = [source or source_run(_path(each, words, folders)) for each in checkpoints]
    runs_dir = Path(str(parsed["runs_dir"].value() if "runs_dir" in parsed else default.runs_dir)).expanduser()
    plain = replace(plain, overrides=_with_usual_paths(words, checkpoints, runs, runs_dir))
    name = _name(checkpoints, runs, Path(os.path.abspath(runs_dir)))
    if (run := runs[0]) is None:
        return replace(plain, checkpoint=name)
    images = parsed.get("images")
    other_data = images is not None and images.value() is not None
    other_data |= "data" not in parsed and cfg.data != default.data  # those of an experiment
    seed = None if cfg.seed != default.seed else default.seed
    return _merged(replace(plain, checkpoint=name), run, other_data, seed)


def all_words(words: Sequence[str]) -> list[str]:
    """The words of `semaim run` with what its evaluation inherits; a sweep completes each of its runs instead."""
    arguments = get_args_parser().parse_args(list(words))
    if arguments.multirun or arguments.help or arguments.hydra_help:
        return list(words)
    folders = [f"file://{Path(arguments.config_dir).absolute()}"] if arguments.config_dir else []
    typed = [word for word in arguments.overrides if not key_of(word).startswith("hydra")]
    complete = completed(typed, folders)
    inherited = complete.inherited or Inherited("", [], [])
    keys = {key_of(word) for word in typed}
    added = [word for word in inherited.overrides if key_of(word) not in keys]
    usual = {key_of(word): word for word in complete.overrides}
    kept = [usual["checkpoint"] if word in typed and key_of(word) == "checkpoint" else word for word in words]
    return [*kept, *added, *(f"hydra.searchpath=[{folder}]" for folder in inherited.folders)]


def _checkpoints(override: Override | None) -> list[str]:
    """The checkpoints that a command line names: none, one or several."""
    value: Any = None if override is None or override.is_sweep_override() else override.value()
    found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [str(each) for each in found]


def _path(checkpoint: str, words: Sequence[str], folders: Sequence[str]) -> Path:
    """The path of a checkpoint; that of mlflow:<run id> is looked up."""
    if not checkpoint.startswith(MLFLOW):
        with suppress(RuntimeError):  # no home folder: reported with the option
            return Path(checkpoint).expanduser()
        return Path(checkpoint)
    tracking = [word for word in words if key_of(word).split(".")[0] == "tracking"]
    store = instantiate(composition(tracking, folders).tracking, _convert_="all")
    path: Path = store.run_folder(checkpoint.removeprefix(MLFLOW))
    return path


def _merged(typed: CommandLine, run: SourceRun, other_data: bool, default_seed: int | None) -> CommandLine:
    """Take the data and the seed of a run, except what is typed.

    Args:
        typed: the command line as typed.
        run: the run.
        other_data: whether it takes other images.
        default_seed: the seed without `seed=`; None if the run's is not to be taken.
    """
    given = {key_of(word): word.lstrip("+") for word in typed.overrides}
    own, folders = dict[str, str](), list[str]()
    if not other_data and run.choice is not None:
        if run.choice not in choices("data", typed.folders):
            folders = run.folder_of_data(given)
        data = run.data(given, [*typed.folders, *folders])
        own |= {key: word for key, word in (data or {}).items() if not names_code(key)}  # code is typed, each time
        folders = folders if data else []
    seed = run.config.get("seed")
    if default_seed is not None and isinstance(seed, int) and seed != default_seed:
        own["seed"] = f"seed={seed}"
    inherited = [word for key, word in own.items() if given.get(key, word) == word]
    if not inherited:
        return typed
    kept = [word for word in typed.overrides if own.get(key_of(word)) != word.lstrip("+")]
    return replace(typed, overrides=kept, inherited=Inherited(run.shown, inherited, folders))


def _with_usual_paths(
    words: Sequence[str], checkpoints: Sequence[str], runs: Sequence[SourceRun | None], runs_dir: Path
) -> list[str]:
    """The command line with checkpoints of runs in `runs_dir` as runs/<name>: runs/<name>/ is the same run."""
    place = Path(os.path.abspath(runs_dir))
    paths = [
        text
        if run is None or text.startswith(MLFLOW) or run.folder.parent != place
        else str(runs_dir / run.checkpoint.relative_to(place))
        for text, run in zip(checkpoints, runs, strict=True)
    ]
    if paths == list(checkpoints):
        return list(words)
    usual = f"checkpoint={value_text(paths if len(paths) > 1 else paths[0])}"
    return [usual if key_of(word) == "checkpoint" else word for word in words]


def _name(checkpoints: Sequence[str], runs: Sequence[SourceRun | None], runs_dir: Path) -> CheckpointName:
    """The name of the checkpoints of an evaluation."""
    texts = [_text(*each, runs_dir) for each in zip(checkpoints, runs, strict=True)]
    if len(texts) == 1:
        return CheckpointName(texts[0], runs[0] is not None)
    return CheckpointName(f"{texts[0]}_and_{len(texts) - 1}_more-{checksum(' '.join(texts))}", runs[0] is not None)


def _text(checkpoint: str, run: SourceRun | None, runs_dir: Path) -> str:
    """The name of one checkpoint.

    A run is named as its folder, without "pretrain_" if the folder has its default name, else after "of_". A checksum
    tells files and folders elsewhere apart.
    """
    if run is None:
        if not Path(checkpoint).suffix and "/" not in checkpoint and not Path(checkpoint).exists():
            return checkpoint.replace(":", "-", 1)  # random, or a model of timm
        path = Path(os.path.abspath(Path(checkpoint).expanduser()))
        return f"{path.name}-{checksum(str(path) if path.exists() else checkpoint)}"
    groups = ("task", "data", "model", "permutation", "target")
    default = "_".join(["pretrain", *(run.chosen.get(group, "") for group in groups[1:])])
    name = run.folder.name
    text = name.removeprefix("pretrain_") if f"{name}_".startswith((f"{default}_", f"{default}-")) else f"of_{name}"
    inside = str(run.checkpoint.relative_to(run.folder))
    inside = re.sub(r"^checkpoints/step_0*(\d+)\.pt$", r"step-\1", inside)
    text += "" if inside == "." else f"_{inside}"
    if checkpoint.startswith(MLFLOW):
        return f"{text}_mlflow-{checksum(checkpoint)}"
    return text if run.folder.parent == runs_dir else f"{text}-{checksum(str(run.folder))}"
