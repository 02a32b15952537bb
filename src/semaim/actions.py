"""What the verbs of the `semaim` program do that start no run: each function takes parsed arguments and prints.

A function returns the exit code, if it is not 0. What it needs is imported when it is called, since imports take long.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from semaim.config.messages import print_error
from semaim.core.formatting import plural, printable
from semaim.errors import UserError


def check(arguments: Namespace) -> int:
    """Check runs; returns 2 if there are problems."""
    from semaim.preflight.command_line import check_command_line
    from semaim.sweeps.trial import sbatch_answer

    checked = check_command_line(**vars(arguments), ask_slurm=sbatch_answer)
    print(printable(str(checked), keep="\n"))
    return 2 if checked.problems else 0


def status(arguments: Namespace) -> int:
    """Print the states of runs; returns 1 if any run failed."""
    from semaim.core.terminal import show_logs
    from semaim.sweeps import commands

    show_logs(to_screen=True)
    if arguments.watch:
        states = commands.watch(arguments.folders, lambda text: print(text, flush=True), arguments.by)
    else:
        view = commands.show(arguments.folders, arguments.by)
        states = view.states
        print(view.text)
    return 1 if any(state.unsuccessful for state in states) else 0


def cancel(arguments: Namespace) -> int:
    """Stop the runs of each folder."""
    from semaim.sweeps import commands

    return _for_each(arguments.folders, commands.cancel)


def retry(arguments: Namespace) -> None:
    """Submit the jobs again."""
    from semaim.core.terminal import show_logs
    from semaim.sweeps import commands

    show_logs(to_screen=True)
    print(commands.retry(arguments.folder, arguments.options))


def sync(arguments: Namespace) -> int:
    """Deliver each folder to MLflow."""
    from semaim.tracking.sync import sync as send

    def sent(path: Path) -> str:
        return f"{printable(str(path))}: {plural(send(path, arguments.uri, arguments.experiment), 'metric point')} sent"

    return _for_each(arguments.folders, sent)


def _for_each(folders: Sequence[Path], action: Callable[[Path], str]) -> int:
    """Act on every folder and print what it returns, or its error; returns the exit code of the last error."""
    code = 0
    for folder in folders:
        try:
            print(action(folder))
        except UserError as error:
            code = print_error(error)
    return code


def report(arguments: Namespace) -> None:
    """Print and write the report."""
    from semaim.report.report import write_report

    write_report(arguments)


def shard(arguments: Namespace) -> None:
    """Write shards, or verify them."""
    from semaim.core.terminal import show_logs
    from semaim.data.shard_command import shard as write

    show_logs(to_screen=True)
    print(write(arguments.words, arguments.config_dir, arguments.verify))


def export(arguments: Namespace) -> None:
    """Write the folder."""
    import torch

    from semaim.core.terminal import show_logs
    from semaim.export.export import Options
    from semaim.export.export import export as write

    show_logs(to_screen=True)
    options = vars(arguments)
    _name_store(options.pop("uri"))
    with torch.no_grad():
        write(Options(**options))


def _name_store(uri: str | None) -> None:
    """Let the given folders name this store."""
    if uri is not None:
        from semaim.tracking.store import name_store

        name_store("--uri", uri)


def ls(arguments: Namespace) -> None:
    """List runs and sweeps, from their folders only, without SLURM or MLflow."""
    from semaim.sweeps import listing

    entries = listing.list_entries(arguments.folder)
    selected = listing.select(entries, arguments.state, arguments.task, arguments.where)
    selected = listing.ordered(selected, arguments.sort)
    text = (
        listing.as_json(selected)
        if arguments.json
        else listing.table(selected, Path(printable(str(arguments.folder))), len(entries))
    )
    print(printable(text, keep="\n"))


def rm(arguments: Namespace) -> None:
    """Delete folders, after asking for confirmation."""
    from semaim.sweeps import removal

    _name_store(arguments.uri)
    removals = removal.plan_removals(arguments.folders, arguments.keep_mlflow)
    print(removal.description(removals))
    if not arguments.yes and not removal.confirm():
        print("nothing was deleted")
        return
    for each in removals:
        removal.remove(each)
        print(f"deleted {printable(str(each.path))}")
