"""The verbs of the `semaim` program: their arguments and help texts."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

from semaim import actions
from semaim.runs.status import FOLDER_STATES

HYDRA_FLAGS = ("--multirun", "--config-dir", "--cfg", "--resolve", "--help")  # offered by completion


@dataclass(frozen=True)
class Verb:
    """A verb of the program.

    Attributes:
        summary: a line for the list of verbs.
        description: text of `--help`; empty if Hydra handles `--help`.
        run: executes the verb and returns the exit code, if it is not 0.
        arguments: add the arguments to a parser.
        by_hydra: whether Hydra parses the command line.
    """

    summary: str
    description: str
    run: Callable[[Namespace], int | None]
    arguments: tuple[Callable[[ArgumentParser], object], ...] = ()
    by_hydra: bool = False

    def parser(self, name: str) -> ArgumentParser:
        """The parser of a verb whose command line Hydra does not parse."""
        parser = ArgumentParser(f"semaim {name}", None, self.description, formatter_class=RawDescriptionHelpFormatter)
        for add_to in self.arguments:
            add_to(parser)
        return parser


def run(arguments: Namespace) -> int:
    """Start a run with Hydra, which parses sys.argv."""
    from semaim.run import command_line

    sys.argv = ["semaim run", *arguments.words]
    return command_line()


def features(arguments: Namespace) -> int:
    """Start a run of task=features."""
    if {"-h", "--help"} & set(arguments.words):
        VERBS["features"].parser("features").print_help()
        return 0
    return run(Namespace(words=["task=features", *arguments.words]))


def again(arguments: Namespace) -> int | None:
    """Print the command of a run or sweep with changes, and start it."""
    from semaim.core.formatting import program
    from semaim.sweeps.again import again as changed

    flags = ["--multirun"] if arguments.multirun else []
    flags += ["--config-dir", str(arguments.config_dir)] if arguments.config_dir else []
    words = changed(arguments.source, [*flags, *arguments.options])
    command = program("run", *words)
    print(command, flush=True)
    if arguments.print:
        return None
    sys.orig_argv[:] = ["semaim", "run", *words]  # what records and messages of the run name
    return run(Namespace(words=words))


def completion(arguments: Namespace) -> None:
    """Print the completion script."""
    from semaim.config.completion import script

    flags = {}
    for name, verb in VERBS.items():
        words = [] if verb.by_hydra else [w for a in verb.parser(name)._actions for w in a.option_strings]
        flags[name] = [word for word in words if word.startswith("--")] or list(HYDRA_FLAGS)
    print(script(arguments.shell, flags), end="")


def argument(*names: str, **options: Any) -> Callable[[ArgumentParser], object]:
    """An argument of a verb, given as to `ArgumentParser.add_argument`."""
    return methodcaller("add_argument", *names, **options)


def folders(description: str = "folders of sweeps or runs") -> Callable[[ArgumentParser], object]:
    """The argument that most verbs have."""
    return argument("folders", nargs="+", type=Path, metavar="folder", help=description)


VERBS = {
    "run": Verb("start a run: pretraining, an evaluation, or with -m a sweep", "", run, by_hydra=True),
    "again": Verb("start a run or sweep again, with changes", """\
Starts the command of a run or sweep again, with changes: an option replaces the one of its name, all others stay.
Without changes it is the same command, which continues a stopped run. The command is printed first.""", again, (
        argument("source", metavar="folder", help="folder of a run or sweep, or mlflow:<run id>"),
        argument("options", nargs="*", metavar="option=value", help="changes, as for semaim run"),
        argument("-m", "--multirun", action="store_true", help="the options are a sweep"),
        argument("-cd", "--config-dir", type=Path, help="a configuration folder besides semaim's own"),
        argument("--print", action="store_true", help="print the command only"),
    )),
    "check": Verb("find what would make runs fail, before they start", """\
Finds problems that would make runs fail hours later, before they are queued. It takes exactly the arguments of `semaim
run`, with -m, then=[...] and hydra/launcher=... Every run is composed, its data are opened, its networks are built
without memory, and its folder, tracking store and SLURM request are checked. No run is started and nothing is written;
only --fetch downloads data, and teachers from the hub, for compute nodes without a network. Prints a table of the runs
and their costs, and a line for each problem.
Exit codes: 0 no problem, 2 problems.""", actions.check, (
        argument("overrides", nargs="*", metavar="option=value", help="options of the run, as for semaim run"),
        argument("-m", "--multirun", action="store_true", help="the options are a sweep"),
        argument("-cd", "--config-dir", type=Path, help="a configuration folder besides semaim's own"),
        argument("--fetch", action="store_true", help="download the data and teachers that the runs would"),
        argument("--tflops", type=float, help="TFLOP/s that a GPU sustains in training, for the GPU-hours"),
    )),
    "status": Verb("show the state, progress and results of sweeps and runs", """\
Shows the state, progress and results of sweeps and runs, from their folders and from SLURM. Of a sweep it compares what
was swept, averaged over seeds, the best first. A run whose job has ended without recording it is marked as such, in its
folder and in MLflow. Exit codes: 0 all are under way or finished, 1 some failed.""", actions.status, (
        folders(),
        argument("--by", metavar="METRIC", help="metric to compare by, such as eval/knn_20_cls or train/loss (default: "
                 "of the most demanding evaluation that all have)"),
        argument("--watch", action="store_true", help="show every change until all is over"),
    )),
    "cancel": Verb("stop sweeps and runs", """\
Stops sweeps and runs. Running jobs finish their step and save, so `semaim retry --failed` continues them; waiting jobs
are taken out of the queue.""", actions.cancel, (folders(),)),
    "retry": Verb("submit again what failed in a sweep", """\
Submits again the runs of a sweep that are failed, interrupted, vanished, or new because they were never submitted. They
continue from their last checkpoint, with the launcher options of the sweep unless others are given, such as mem_gb=64
or partition=long. Finished runs and live jobs are left alone.""", actions.retry, (
        argument("folder", type=Path, help="folder of a sweep, or of a run of it"),
        argument("options", nargs="*", metavar="option=value", help="launcher options, such as mem_gb=64"),
        argument("--failed", action="store_true", required=True, help="every run that is over, but not finished"),
    )),
    "sync": Verb("send to MLflow what was not sent", """\
Sends to MLflow what a run could not send. Safe to repeat, and safe while the run is running: each point is stored
once. The store is the configured one (tracking.uri, for example of site.yaml); a run that was started with another is
sent there if --uri names it.""", actions.sync, (
        folders("run folders, such as runs/*"),
        argument("--uri", help="MLflow store; needed if the run was started with another than the configured one"),
        argument("--experiment", help="MLflow experiment for runs started with tracking=none (default: semaim)"),
    )),
    "report": Verb("write all evaluations of an MLflow store as tables and plots", """\
Reads the finished evaluations of an MLflow store, averages over seeds, and compares the methods, the best first.
Without evaluations it compares the online accuracies of pretrainings. On ImageNet, published results stand beside ours.
Prints a Markdown table, and writes it to a folder with a CSV file, and plots of accuracy against epochs, FLOPs and
device-hours of pretraining. The store is not changed.""", actions.report, (
        argument("--by", metavar="METRIC", help="metric to compare by, such as eval/linprobe_mean (default: of the "
                 "most demanding evaluation that all have)"),
        argument("--uri", help="MLflow store (default: the configured one, tracking.uri)"),
        argument("--experiment", action="append", default=[], help="only of this experiment; repeatable"),
        argument("--tag", action="append", default=[], metavar="KEY=VALUE",
                 help="only evaluations that have this MLflow tag; repeatable, all must hold"),
        argument("--data", help="only evaluations on this data set (published ones are on imagenet)"),
        argument("--output", type=Path, default=Path("report"), help="folder to write to (default: %(default)s)"),
        argument("--published", action=BooleanOptionalAction, help="list published results (default: if there are "
                 "evaluations on imagenet)"),
    )),
    "features": Verb("write the features and labels of a checkpoint's encoder to files", """\
Writes the features of a checkpoint's encoder, and the labels, to one file for each part of the data. It is `semaim run
task=features` and takes the same options: checkpoint=... (a run folder or file, mlflow:<run id>, timm:<name>),
data=... (if not those of that run), task.format=npz or safetensors.""", features, (  # for --help only
        argument("overrides", nargs="*", metavar="option=value", help="as for semaim run, such as data=folder"),
    ), by_hydra=True),
    "shard": Verb("write a folder of images to tar files, for slow storage", """\
Writes the images of a folder, as they are, to uncompressed tar files ("shards") with an index. Runs read them in place
of the folder (data.root=<shards>) with the same results, and few files are opened. WebDataset reads them, too. The same
command continues what was interrupted, and writes missing shards again.

  semaim shard data=imagenet data.root=/data/imagenet out=/scratch/imagenet_shards
  semaim run data=imagenet data.root=/scratch/imagenet_shards

out=<folder> is a new or empty folder; shard_size=500MB is the size of a shard (default: 1GB).""", actions.shard, (
        argument("words", nargs="+", metavar="option=value", help="out=, shard_size=, and the data, as for semaim run"),
        argument("--verify", action="store_true", help="compare the checksums of all shards in out=; writes nothing"),
        argument("-cd", "--config-dir", type=Path, help="a configuration folder besides semaim's own"),
    )),
    "export": Verb("write an encoder for timm or transformers", """\
Writes a folder that timm or transformers loads by itself: model.safetensors, config.json and a model card. A fine-tuned
classifier keeps its head. The folder is also a checkpoint for semaim.""", actions.export, (  # as export.Options
        argument("checkpoint", help="run folder or checkpoint file, of semaim or another project"),
        argument("--format", default="timm", metavar="{timm,huggingface}", help="default: %(default)s"),
        argument("--output", help="folder to write (default: <format> inside or beside the checkpoint)"),
        argument("--overwrite", action="store_true", help="replace an earlier export"),
        argument("--ema", action="store_true", help="take the moving average of the weights"),
        argument("--num-heads", type=int, help="attention heads, if the file does not contain them"),
        argument("--architecture", help="timm model of another project's file, if its weights do not tell it"),
        argument("--mlflow", action="store_true", help="also log the model to the MLflow run it is from"),
        argument("--uri", help="MLflow store of that run, if it is not the configured one"),
    )),
    "ls": Verb("list the runs and sweeps of a folder", """\
Lists the runs and sweeps of a folder: state, main metric, age, size, task, choices, and folder.""", actions.ls, (
        argument("folder", nargs="?", type=Path, default=Path("runs"), help="default: runs"),
        argument("--state", action="append", default=[], choices=FOLDER_STATES, help="only these; repeatable"),
        argument("--task", action="append", default=[], help="only of this task, such as knn; repeatable"),
        argument("--where", action="append", default=[], metavar="OPTION=VALUE",
                 help="only runs with this choice or option, such as permutation=raster or seed=1; repeatable, "
                 "all must hold"),
        argument("--sort", default="age", choices=("age", "name", "size", "metric"),
                 help="default: %(default)s, newest first"),
        argument("--json", action="store_true", help="print JSON, for programs"),
    )),
    "rm": Verb("delete runs and sweeps, with their checkpoints and MLflow runs", """\
Deletes runs with their checkpoints and their MLflow runs, and sweeps with all their runs. Shows what would be deleted
and asks first. Refuses runs that are running or waiting in a queue. MLflow keeps deleted runs until `mlflow gc`.""",
        actions.rm, (
        folders("folders of runs or sweeps"),
        argument("--yes", action="store_true", help="do not ask"),
        argument("--uri", help="MLflow store of the runs, if it is not the configured one"),
        argument("--keep-mlflow", action="store_true", help="keep the MLflow runs"),
    )),
    "completion": Verb("print the completion of bash or zsh", """\
Prints a script that completes semaim's verbs, options, groups and choices in a shell. For this shell:
  eval "$(semaim completion bash)"
For every shell, add that line to ~/.bashrc (zsh: ~/.zshrc, with zsh in place of bash).""", completion, (
        argument("shell", choices=["bash", "zsh"]),
    )),
}  # fmt: skip
