"""The `semaim` program: `semaim <verb>`, also `python -m semaim <verb>`.

Folders and checkpoints are positional arguments, `--options` belong to the program, and `option=value` are options of
the configuration. Exit codes: 0 done; 1 a fault of the program, or runs that failed; 2 a mistake in what was asked;
3 a loss that was not finite; 75 stopped by a signal with everything saved; 130 interrupted at once.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semaim.core.formatting import plural

USUAL_STORE = "sqlite:///mlflow.db"
HYDRA_FLAGS = ("--multirun", "--config-dir", "--cfg", "--resolve", "--help")  # of those that completion offers


@dataclass(frozen=True)
class Verb:
    """One thing that the program does.

    Attributes:
        summary: a line for the list of verbs.
        description: what `--help` says; empty where Hydra answers it.
        arguments: adds the arguments to a parser; None where Hydra also answers `--help`.
        act: does it, and returns the exit code.
        by_hydra: whether Hydra reads the command line.
    """

    summary: str
    description: str
    arguments: Callable[[ArgumentParser], None] | None
    act: Callable[[Namespace], int]
    by_hydra: bool = False

    def parser(self, name: str) -> ArgumentParser:
        """Reads the command line of a verb that Hydra does not read."""
        parser = ArgumentParser(f"semaim {name}", None, self.description, formatter_class=RawDescriptionHelpFormatter)
        assert self.arguments is not None
        self.arguments(parser)
        return parser


def folders(parser: ArgumentParser, what: str = "folders of sweeps or runs") -> None:
    """The argument that most verbs have."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="folder", help=what)


def run(arguments: Namespace) -> int:
    """With Hydra, which reads sys.argv."""
    from semaim.run import command_line

    sys.argv = ["semaim run", *arguments.words]
    return command_line()


def features_arguments(parser: ArgumentParser) -> None:
    """Those of a run; Hydra reads them, this is for --help."""
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="as for semaim run, such as data=folder")


def features(arguments: Namespace) -> int:
    """A run of task=features."""
    if {"-h", "--help"} & set(arguments.words):
        VERBS["features"].parser("features").print_help()
        return 0
    return run(Namespace(words=["task=features", *arguments.words]))


def check_arguments(parser: ArgumentParser) -> None:
    """Those of a run, and --tflops."""
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="options of the run, as for semaim run")
    parser.add_argument("-m", "--multirun", action="store_true", help="the options are a sweep")
    parser.add_argument("-cd", "--config-dir", type=Path, help="a configuration folder besides semaim's own")
    parser.add_argument("--tflops", type=float, help="TFLOP/s that a GPU sustains in training, for the GPU-hours")


def check(arguments: Namespace) -> int:
    """2 if there are problems."""
    from semaim.preflight.check import check_command_line

    checked = check_command_line(arguments.overrides, arguments.multirun, arguments.config_dir, arguments.tflops)
    print(checked)
    return 2 if checked.problems else 0


def status_arguments(parser: ArgumentParser) -> None:
    """Folders, and --watch."""
    folders(parser)
    parser.add_argument("--watch", action="store_true", help="show every change until all is over")


def status(arguments: Namespace) -> int:
    """1 if any run failed."""
    from semaim.sweeps import commands

    if arguments.watch:
        now = commands.watch(arguments.folders, lambda text: print(text, flush=True))
    else:
        shown = [commands.show(path) for path in arguments.folders]
        print("\n\n".join(text for text, _ in shown))
        now = [state for _, each in shown for state in each]
    return 1 if any(state.over and state.word != "finished" for state in now) else 0


def cancel(arguments: Namespace) -> int:
    """One folder after the other."""
    from semaim.sweeps import commands

    for path in arguments.folders:
        print(commands.cancel_and_show(path))
    return 0


def retry_arguments(parser: ArgumentParser) -> None:
    """A folder, launcher options, and --failed."""
    parser.add_argument("folder", type=Path, help="folder of a sweep, or of a run of it")
    parser.add_argument("options", nargs="*", metavar="option=value", help="launcher options, such as mem_gb=64")
    parser.add_argument(
        "--failed", action="store_true", required=True, help="runs that failed, were killed or vanished"
    )


def retry(arguments: Namespace) -> int:
    """Submits jobs."""
    from semaim.core.terminal import show_logs
    from semaim.sweeps import commands

    show_logs(to_screen=True)
    print(commands.retry_and_show(arguments.folder, arguments.options))
    return 0


def sync_arguments(parser: ArgumentParser) -> None:
    """Run folders, and where to send them."""
    folders(parser, "run folders, such as runs/*")
    parser.add_argument("--uri", help="another MLflow store than the one the run was started with")
    parser.add_argument("--experiment", help="MLflow experiment for runs started with tracking=none (default: semaim)")


def sync(arguments: Namespace) -> int:
    """One folder after the other."""
    from semaim.tracking.sync import sync as send

    for path in arguments.folders:
        points = send(path, arguments.uri, arguments.experiment)
        print(f"{path}: {plural(points, 'metric point')} sent")
    return 0


def report_arguments(parser: ArgumentParser) -> None:
    """Which evaluations, and where to write."""
    parser.add_argument("--uri", default=USUAL_STORE, help="MLflow store (default: %(default)s)")
    parser.add_argument("--experiment", action="append", default=[], help="only of this experiment; repeatable")
    parser.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE",
                        help="only evaluations that have this MLflow tag; repeatable, all must hold")  # fmt: skip
    parser.add_argument("--data", help="only evaluations on this data set (published ones are on imagenet)")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--no-published", action="store_true", help="leave out the figures of papers")


def report(arguments: Namespace) -> int:
    """Prints and writes."""
    from semaim.report.report import write_report

    write_report(arguments)
    return 0


def export_arguments(parser: ArgumentParser) -> None:
    """A checkpoint, and what to make of it; the names are those of `semaim.export.export.Options`."""
    parser.add_argument("checkpoint", help="run folder or checkpoint file, of semaim or another project")
    parser.add_argument("--format", default="timm", metavar="{timm,huggingface}", help="default: %(default)s")
    parser.add_argument("--output", help="folder to write (default: <format> inside or beside the checkpoint)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    parser.add_argument("--num-heads", type=int, help="attention heads, where the file does not tell them")
    parser.add_argument("--architecture", help="timm model of another project's file, where its weights do not tell it")
    parser.add_argument("--mlflow", action="store_true", help="also log the model to the MLflow run it is from")


def export(arguments: Namespace) -> int:
    """Writes a folder."""
    import torch

    from semaim.core.terminal import show_logs
    from semaim.export.export import Options
    from semaim.export.export import export as write

    show_logs(to_screen=True)
    with torch.no_grad():
        write(Options(**vars(arguments)))
    return 0


def ls_arguments(parser: ArgumentParser) -> None:
    """A folder, filters and the order."""
    from semaim.sweeps.listing import ORDERS, STATES

    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="default: %(default)s")
    parser.add_argument("--state", action="append", default=[], choices=STATES, help="only these; repeatable")
    parser.add_argument("--task", action="append", default=[], help="only of this task, such as knn; repeatable")
    parser.add_argument("--where", action="append", default=[], metavar="OPTION=VALUE",
                        help="only runs with this choice or option, such as permutation=raster or seed=1; repeatable, "
                        "all must hold")  # fmt: skip
    parser.add_argument("--sort", default="age", choices=ORDERS, help="default: %(default)s, newest first")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def ls(arguments: Namespace) -> int:
    """Reads folders only; it asks neither SLURM nor MLflow."""
    from semaim.sweeps import listing

    rows = listing.rows(arguments.folder)
    chosen = listing.select(rows, arguments.state, arguments.task, arguments.where)
    chosen = listing.ordered(chosen, arguments.sort)
    print(listing.as_json(chosen) if arguments.json else listing.table(chosen, arguments.folder, len(rows)))
    return 0


def rm_arguments(parser: ArgumentParser) -> None:
    """Folders, --yes and --keep-mlflow."""
    folders(parser, "folders of runs or sweeps")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--keep-mlflow", action="store_true", help="keep the MLflow runs")


def rm(arguments: Namespace) -> int:
    """Asks before it deletes anything."""
    from semaim.sweeps import removal

    removals = removal.planned(arguments.folders)
    print(removal.description(removals, arguments.keep_mlflow))
    if not arguments.yes and not removal.confirmed():
        print("nothing was deleted")
        return 0
    for each in removals:
        removal.remove(each, arguments.keep_mlflow)
        print(f"deleted {each.path}")
    return 0


def completion_arguments(parser: ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=["bash", "zsh"])


def completion(arguments: Namespace) -> int:
    """Prints a script."""
    from semaim.config.completion import script

    flags = {}
    for name, verb in VERBS.items():
        words = [] if verb.by_hydra else [w for a in verb.parser(name)._actions for w in a.option_strings]
        flags[name] = [word for word in words if word.startswith("--")] or list(HYDRA_FLAGS)
    print(script(arguments.shell, flags), end="")
    return 0


VERBS = {
    "run": Verb("start a run: pretraining, an evaluation, or with -m a sweep", "", None, run, by_hydra=True),
    "check": Verb("find what would make runs fail, before they start", """\
Finds what would make runs fail hours later, before they are queued. It takes exactly what `semaim run` takes, with -m,
then=[...] and hydra/launcher=... Every run is composed, its data are opened (and downloaded if the run would download
them), its networks are built without memory, and its folder, tracking store and SLURM request are checked. No run is
started and no run folder is written. Prints a table of what each run is and costs, and a line for each problem.
Exit codes: 0 no problem, 2 problems.""", check_arguments, check),
    "status": Verb("show the state, progress and results of sweeps and runs", """\
Shows the state, progress and results of sweeps and runs, from their folders and from SLURM. A run whose job was killed
is marked as such, in its folder and in MLflow. Exit codes: 0 all are under way or finished, 1 some failed.""",
        status_arguments, status),
    "cancel": Verb("stop sweeps and runs", """\
Stops sweeps and runs. Running jobs finish their step and save, so `semaim retry --failed` continues them; waiting jobs
are taken out of the queue.""", folders, cancel),
    "retry": Verb("submit again what failed in a sweep", """\
Submits again the runs of a sweep that failed, were killed or vanished. They continue from their last checkpoint, with
the launcher options of the sweep unless others are given, such as mem_gb=64 or partition=long. Finished runs and live
jobs are left alone.""", retry_arguments, retry),
    "sync": Verb("send to MLflow what was not sent", """\
Sends to MLflow what a run could not send. Safe to repeat, and safe while the run is running: each point is stored
once.""", sync_arguments, sync),
    "report": Verb("write all evaluations of an MLflow store as tables and plots", """\
Reads the finished evaluations of an MLflow store, averages over seeds, and sets each method's accuracies beside the
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
Lists the runs and sweeps of a folder: state, main metric, age, size, task, what was chosen, and folder.""",
        ls_arguments, ls),
    "rm": Verb("delete runs and sweeps, with their checkpoints and MLflow runs", """\
Deletes runs with their checkpoints and their MLflow runs, and sweeps with all their runs. Shows what would be deleted
and asks first. Refuses runs that are running or waiting in a queue. MLflow keeps deleted runs until `mlflow gc`.""",
        rm_arguments, rm),
    "completion": Verb("print the completion of bash or zsh", """\
Prints what makes a shell complete semaim's verbs, options, groups and choices. For this shell:
  eval "$(semaim completion bash)"
For every shell, add that line to ~/.bashrc (zsh: ~/.zshrc, with zsh in place of bash).""",
        completion_arguments, completion),
}  # fmt: skip


def usage() -> str:
    """The help page of the program."""
    verbs = "\n".join(f"  {name:<11} {verb.summary}" for name, verb in VERBS.items())
    return f"""\
usage: semaim <verb> ...

{verbs}

`semaim <verb> --help` explains a verb; `semaim run --help` lists all choices of a run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and act; the exit code."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "-V", "--version"):
        import semaim

        print(f"semaim {semaim.__version__}" if name in ("-V", "--version") else usage())
        return 0
    if name not in VERBS:
        print(f"error: there is no verb {name}\n\n{usage()}", file=sys.stderr)
        return 2
    verb = VERBS[name]
    arguments = Namespace(words=words) if verb.by_hydra else verb.parser(name).parse_intermixed_args(words)
    try:
        return verb.act(arguments)
    except (Exception, KeyboardInterrupt) as error:
        from semaim.config.messages import print_error

        return print_error(error)


if __name__ == "__main__":
    sys.exit(main())
