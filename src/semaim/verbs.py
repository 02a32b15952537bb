"""The verbs of the `semaim` program: their arguments, help texts and functions."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semaim.core.formatting import plural

HYDRA_FLAGS = ("--multirun", "--config-dir", "--cfg", "--resolve", "--help")  # offered by completion


@dataclass(frozen=True)
class Verb:
    """A verb of the program.

    Attributes:
        summary: a line for the list of verbs.
        description: text of `--help`; empty if Hydra handles `--help`.
        arguments: adds the arguments to a parser; None if Hydra handles `--help`.
        run: executes the verb and returns the exit code, if it is not 0.
        by_hydra: whether Hydra parses the command line.
    """

    summary: str
    description: str
    arguments: Callable[[ArgumentParser], None] | None
    run: Callable[[Namespace], int | None]
    by_hydra: bool = False

    def parser(self, name: str) -> ArgumentParser:
        """The parser of a verb whose command line Hydra does not parse."""
        parser = ArgumentParser(f"semaim {name}", None, self.description, formatter_class=RawDescriptionHelpFormatter)
        assert self.arguments is not None
        self.arguments(parser)
        return parser


def folders_argument(parser: ArgumentParser, description: str = "folders of sweeps or runs") -> None:
    """Add the argument that most verbs have."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="folder", help=description)


def run(arguments: Namespace) -> int:
    """Start a run with Hydra, which parses sys.argv."""
    from semaim.run import command_line

    sys.argv = ["semaim run", *arguments.words]
    return command_line()


def features_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of a run, for --help only: Hydra parses them."""
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="as for semaim run, such as data=folder")


def features(arguments: Namespace) -> int:
    """Start a run of task=features."""
    if {"-h", "--help"} & set(arguments.words):
        VERBS["features"].parser("features").print_help()
        return 0
    return run(Namespace(words=["task=features", *arguments.words]))


def check_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of a run, --fetch and --tflops."""
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="options of the run, as for semaim run")
    parser.add_argument("-m", "--multirun", action="store_true", help="the options are a sweep")
    parser.add_argument("-cd", "--config-dir", type=Path, help="a configuration folder besides semaim's own")
    parser.add_argument("--fetch", action="store_true", help="download the data and teachers that the runs would")
    parser.add_argument("--tflops", type=float, help="TFLOP/s that a GPU sustains in training, for the GPU-hours")


def check(arguments: Namespace) -> int:
    """Check runs; returns 2 if there are problems."""
    from semaim.preflight.check import check_command_line

    checked = check_command_line(**vars(arguments))
    print(checked)
    return 2 if checked.problems else 0


def status_arguments(parser: ArgumentParser) -> None:
    """Add folders and --watch."""
    folders_argument(parser)
    parser.add_argument("--watch", action="store_true", help="show every change until all is over")


def status(arguments: Namespace) -> int:
    """Print the states of runs; returns 1 if any run failed."""
    from semaim.sweeps import commands

    if arguments.watch:
        states = commands.watch(arguments.folders, lambda text: print(text, flush=True))
    else:
        tables = [commands.show(path) for path in arguments.folders]
        print("\n\n".join(text for text, _ in tables))
        states = [state for _, each in tables for state in each]
    return 1 if any(state.unsuccessful for state in states) else 0


def cancel(arguments: Namespace) -> None:
    """Stop the runs of each folder."""
    from semaim.sweeps import commands

    for path in arguments.folders:
        print(commands.cancel_and_show(path))


def retry_arguments(parser: ArgumentParser) -> None:
    """Add a folder, launcher options, and --failed."""
    parser.add_argument("folder", type=Path, help="folder of a sweep, or of a run of it")
    parser.add_argument("options", nargs="*", metavar="option=value", help="launcher options, such as mem_gb=64")
    parser.add_argument("--failed", action="store_true", required=True, help="every run that is over, but not finished")


def retry(arguments: Namespace) -> None:
    """Submit the jobs again."""
    from semaim.core.terminal import show_logs
    from semaim.sweeps import commands

    show_logs(to_screen=True)
    print(commands.retry_and_show(arguments.folder, arguments.options))


def sync_arguments(parser: ArgumentParser) -> None:
    """Add run folders and the MLflow store."""
    folders_argument(parser, "run folders, such as runs/*")
    parser.add_argument("--uri", help="another MLflow store than the one the run was started with")
    parser.add_argument("--experiment", help="MLflow experiment for runs started with tracking=none (default: semaim)")


def sync(arguments: Namespace) -> None:
    """Deliver each folder to MLflow."""
    from semaim.tracking.sync import sync as send

    for path in arguments.folders:
        points = send(path, arguments.uri, arguments.experiment)
        print(f"{path}: {plural(points, 'metric point')} sent")


def report_arguments(parser: ArgumentParser) -> None:
    """Add the selection of evaluations, and the output folder."""
    from semaim.tracking.mlflow import DEFAULT_URI

    parser.add_argument("--uri", default=DEFAULT_URI, help="MLflow store (default: %(default)s)")
    parser.add_argument("--experiment", action="append", default=[], help="only of this experiment; repeatable")
    parser.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE",
                        help="only evaluations that have this MLflow tag; repeatable, all must hold")  # fmt: skip
    parser.add_argument("--data", help="only evaluations on this data set (published ones are on imagenet)")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--no-published", action="store_true", help="leave out published results")


def report(arguments: Namespace) -> None:
    """Print and write the report."""
    from semaim.report.report import write_report

    write_report(arguments)


def export_arguments(parser: ArgumentParser) -> None:
    """Add the fields of `semaim.export.export.Options`, under the same names."""
    parser.add_argument("checkpoint", help="run folder or checkpoint file, of semaim or another project")
    parser.add_argument("--format", default="timm", metavar="{timm,huggingface}", help="default: %(default)s")
    parser.add_argument("--output", help="folder to write (default: <format> inside or beside the checkpoint)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    parser.add_argument("--num-heads", type=int, help="attention heads, if the file does not contain them")
    parser.add_argument("--architecture", help="timm model of another project's file, if its weights do not tell it")
    parser.add_argument("--mlflow", action="store_true", help="also log the model to the MLflow run it is from")


def export(arguments: Namespace) -> None:
    """Write the folder."""
    import torch

    from semaim.core.terminal import show_logs
    from semaim.export.export import Options
    from semaim.export.export import export as write

    show_logs(to_screen=True)
    with torch.no_grad():
        write(Options(**vars(arguments)))


def ls_arguments(parser: ArgumentParser) -> None:
    """Add a folder, filters and the order."""
    from semaim.sweeps.listing import ORDERS, STATES

    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="default: runs")
    parser.add_argument("--state", action="append", default=[], choices=STATES, help="only these; repeatable")
    parser.add_argument("--task", action="append", default=[], help="only of this task, such as knn; repeatable")
    parser.add_argument("--where", action="append", default=[], metavar="OPTION=VALUE",
                        help="only runs with this choice or option, such as permutation=raster or seed=1; repeatable, "
                        "all must hold")  # fmt: skip
    parser.add_argument("--sort", default="age", choices=ORDERS, help="default: %(default)s, newest first")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def ls(arguments: Namespace) -> None:
    """List runs and sweeps, from their folders only, without SLURM or MLflow."""
    from semaim.sweeps import listing

    entries = listing.list_entries(arguments.folder)
    selected = listing.select(entries, arguments.state, arguments.task, arguments.where)
    selected = listing.ordered(selected, arguments.sort)
    print(listing.as_json(selected) if arguments.json else listing.table(selected, arguments.folder, len(entries)))


def rm_arguments(parser: ArgumentParser) -> None:
    """Add folders, --yes and --keep-mlflow."""
    folders_argument(parser, "folders of runs or sweeps")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--keep-mlflow", action="store_true", help="keep the MLflow runs")


def rm(arguments: Namespace) -> None:
    """Delete folders, after asking for confirmation."""
    from semaim.sweeps import removal

    removals = removal.plan_removals(arguments.folders)
    print(removal.description(removals, arguments.keep_mlflow))
    if not arguments.yes and not removal.confirm():
        print("nothing was deleted")
        return
    for each in removals:
        removal.remove(each, arguments.keep_mlflow)
        print(f"deleted {each.path}")


def completion_arguments(parser: ArgumentParser) -> None:
    """Add the shell."""
    parser.add_argument("shell", choices=["bash", "zsh"])


def completion(arguments: Namespace) -> None:
    """Print the completion script."""
    from semaim.config.completion import script

    flags = {}
    for name, verb in VERBS.items():
        words = [] if verb.by_hydra else [w for a in verb.parser(name)._actions for w in a.option_strings]
        flags[name] = [word for word in words if word.startswith("--")] or list(HYDRA_FLAGS)
    print(script(arguments.shell, flags), end="")


VERBS = {
    "run": Verb("start a run: pretraining, an evaluation, or with -m a sweep", "", None, run, by_hydra=True),
    "check": Verb("find what would make runs fail, before they start", """\
Finds problems that would make runs fail hours later, before they are queued. It takes exactly the arguments of `semaim
run`, with -m, then=[...] and hydra/launcher=... Every run is composed, its data are opened, its networks are built
without memory, and its folder, tracking store and SLURM request are checked. No run is started and nothing is written;
only --fetch downloads data, and teachers from the hub, for compute nodes without a network. Prints a table of the runs
and their costs, and a line for each problem.
Exit codes: 0 no problem, 2 problems.""", check_arguments, check),
    "status": Verb("show the state, progress and results of sweeps and runs", """\
Shows the state, progress and results of sweeps and runs, from their folders and from SLURM. A run whose job has
ended without recording it is marked as such, in its folder and in MLflow. Exit codes: 0 all are under way or finished,
1 some failed.""",
        status_arguments, status),
    "cancel": Verb("stop sweeps and runs", """\
Stops sweeps and runs. Running jobs finish their step and save, so `semaim retry --failed` continues them; waiting jobs
are taken out of the queue.""", folders_argument, cancel),
    "retry": Verb("submit again what failed in a sweep", """\
Submits again the runs of a sweep that are failed, interrupted, vanished, or new because they were never submitted. They
continue from their last checkpoint, with the launcher options of the sweep unless others are given, such as mem_gb=64
or partition=long. Finished runs and live jobs are left alone.""", retry_arguments, retry),
    "sync": Verb("send to MLflow what was not sent", """\
Sends to MLflow what a run could not send. Safe to repeat, and safe while the run is running: each point is stored
once.""", sync_arguments, sync),
    "report": Verb("write all evaluations of an MLflow store as tables and plots", """\
Reads the finished evaluations of an MLflow store, averages over seeds, and lists each method's accuracies with the
published ones. Prints a Markdown table, and writes it to a folder with a CSV file and plots. The store is not
changed.""", report_arguments, report),
    "features": Verb("write the features and labels of a checkpoint's encoder to files", """\
Writes the features of a checkpoint's encoder, and the labels, to one file for each part of the data. It is `semaim run
task=features` and takes the same options: checkpoint=... (a run folder or file, mlflow:<run id>, timm:<name>),
data=..., task.format=npz or safetensors, task.batch_size=64.""", features_arguments, features, by_hydra=True),
    "export": Verb("write an encoder for timm or transformers", """\
Writes a folder that timm or transformers loads by itself: model.safetensors, config.json and a model card. A fine-tuned
classifier keeps its head. The folder is also a checkpoint for semaim.""", export_arguments, export),
    "ls": Verb("list the runs and sweeps of a folder", """\
Lists the runs and sweeps of a folder: state, main metric, age, size, task, choices, and folder.""",
        ls_arguments, ls),
    "rm": Verb("delete runs and sweeps, with their checkpoints and MLflow runs", """\
Deletes runs with their checkpoints and their MLflow runs, and sweeps with all their runs. Shows what would be deleted
and asks first. Refuses runs that are running or waiting in a queue. MLflow keeps deleted runs until `mlflow gc`.""",
        rm_arguments, rm),
    "completion": Verb("print the completion of bash or zsh", """\
Prints a script that completes semaim's verbs, options, groups and choices in a shell. For this shell:
  eval "$(semaim completion bash)"
For every shell, add that line to ~/.bashrc (zsh: ~/.zshrc, with zsh in place of bash).""",
        completion_arguments, completion),
}  # fmt: skip
