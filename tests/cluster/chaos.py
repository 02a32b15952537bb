"""A chaos campaign: two sweeps on a real cluster, disturbed at random, must end as if nothing had happened.

    python tests/cluster/chaos.py --minutes 30 --seed 1 [--home DIR] [--without EVENT ...]

It needs root and SLURM (tests/support/one_machine_slurm.sh). The seed chooses events, targets and moments. It brings up
a cluster of its own and leaves nothing behind but DIR, with the log `events.csv` and a copy of the run folders. It
prints the events and their outcomes as a table, and each check with the number of runs for which it holds. The exit
code is 0 if all hold, else 1, with a list of what is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import slurm
from support.chaos import WEIGHTS, Disturbed, write_configuration
from support.chaos_events import Events, schedule
from support.chaos_verdict import Verdict, conclude, repair, summary
from support.small_disk import small_disk

SOURCES = Path(__file__).parents[2] / "src"
RUNNING_SHARE = 0.45  # of the time that a run takes if it is hit as often as the others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="of disturbance")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path, help="folder to keep; a temporary one by default")
    parser.add_argument("--points", type=int, default=9, help="runs, a third of them on two nodes")
    parser.add_argument("--gap", type=float, nargs=2, default=(4, 8), help="least and most seconds between two events")
    parser.add_argument("--without", nargs="*", default=[], choices=WEIGHTS, help="kinds of events to leave out")
    options = parser.parse_args()
    if reason := slurm.missing():
        parser.error(reason)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves nothing behind either
    home = Path(tempfile.mkdtemp(prefix="chaos_")) if options.home is None else options.home.absolute()
    (home / "cluster").mkdir(parents=True)
    cluster = slurm.Cluster(home / "cluster")
    try:
        cluster.start()
        with slurm.used(cluster), small_disk(home / "runs", "300m"):
            try:
                wrong = campaign(cluster, home, options)
            finally:
                if options.home is not None:
                    shutil.copytree(home / "runs", home / "kept", ignore=shutil.ignore_patterns(".fill"))
    finally:
        cluster.stop()
        shutil.rmtree(home / "cluster" / "mariadb" if options.home else home, ignore_errors=True)
    print(f"{len(wrong)} faults" + "".join(f"\n{number}. {fault}" for number, fault in enumerate(wrong, 1)))
    return 1 if wrong else 0


def campaign(cluster: slurm.Cluster, home: Path, options: argparse.Namespace) -> list[str]:
    """Submit, disturb, repair, conclude, judge; returns what is wrong."""
    steps, seconds = max(30, round(10 * options.minutes)), 60 * options.minutes
    on_two = max(1, options.points // 3)
    common = ("+experiment=disturbed", "evaluators=[]", "then=[knn]", "sweep.check=false", f"trainer.max_steps={steps}")
    orders = ("permutation=raster,stochastic",) if options.points > 3 else ("permutation=raster",)
    seeds = (options.points - on_two) // (2 if options.points > 3 else 1)
    sweeps = (
        Disturbed("on_one_node", 1, (*common, *orders, f"seed={','.join(map(str, range(seeds)))}")),
        Disturbed("on_two_nodes", 2, (*common, f"seed={','.join(map(str, range(100, 100 + on_two)))}")),
    )
    write_configuration(home)
    shutil.copytree(SOURCES, home / "source", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    events = Events(cluster, home, sweeps)
    say("undisturbed runs")
    with ThreadPoolExecutor() as pool:
        references = {name: found for made in pool.map(events.undisturbed, sweeps) for name, found in made.items()}
    say(f"{len(references)} runs and their evaluations, {steps} steps each")
    events.submit(RUNNING_SHARE * seconds / steps)
    kinds = [kind for kind in WEIGHTS if kind not in options.without and (kind != "source_edited" or has_snapshot())]
    points = events.points()
    say(f"disturbing {len(points)} jobs for {options.minutes:g} minutes, seed {options.seed}")
    events.started = time.monotonic()
    happened = []
    with ThreadPoolExecutor(8) as pool:
        try:
            for event in schedule(options.seed, seconds, tuple(options.gap), len(points), kinds):
                time.sleep(max(0.0, events.started + event.at - time.monotonic()))
                happened.append(pool.submit(events.happen, event))
        finally:
            events.over.set()  # what waits or lasts ends
    for each in happened:
        each.result()  # raises what is wrong with the campaign itself
    say("repairing")
    write_configuration(home, edited="conf_edited" in kinds)  # for good: what is submitted does not care
    repair(events)
    conclude(events)
    verdict = Verdict(events, references)
    print(summary(events.rows), flush=True)
    print("\n".join(f"{good} of {cases}: {what}" for what, (good, cases) in verdict.counts.items()), flush=True)
    return events.wrong


def has_snapshot() -> bool:
    """Whether submitted sweeps have a copy of the code, so that editing it must not matter."""
    return "snapshot:" in (SOURCES / "semaim" / "conf" / "config.yaml").read_text()


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
