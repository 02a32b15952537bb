"""Timings of semaim, from the root of the repository:

python -m benchmarks step --model base --batch-size 64 --json benchmarks/results/mine.json
python -m benchmarks all --minutes 10 --out benchmarks/results/mine
python -m benchmarks table
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import campaign, data, hardware, knn, methods, parts, scaling, startup, step, table

BENCHMARKS: dict[str, ModuleType] = {
    "step": step, "data": data, "knn": knn, "startup": startup, "scaling": scaling, "parts": parts,
    "methods": methods,
}  # fmt: skip


def main() -> int:
    """Run what the command line says; exit code 1 if forms that are compared disagree or a page is not up to date."""
    args = parser().parse_args()
    if args.benchmark == "all":
        return campaign.run(args)
    if args.benchmark == "table":
        return table.command(args.check)
    module = BENCHMARKS[args.benchmark]
    if args.small:
        module.small(args)
    environment = hardware.environment(hardware.choose(args.device))
    try:
        measured: dict[str, Any] = module.measure(args)
    except step.FormsDisagree as error:
        print(error, file=sys.stderr)
        return 1
    if getattr(args, "peak_of", None) is not None:
        print(measured["peak_memory_bytes"])
        return 0
    result = {"benchmark": args.benchmark, "small": args.small} | environment | measured
    print(table.of_results(args.benchmark, [result]))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    whole = argparse.ArgumentParser("python -m benchmarks", description=__doc__, formatter_class=formatter)
    commands = whole.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, module in BENCHMARKS.items():
        text = (module.__doc__ or "").strip()
        one = commands.add_parser(name, help=text.partition("\n")[0], description=text, formatter_class=formatter)
        module.add_arguments(one)
        one.add_argument("--small", action="store_true", help="sizes that take seconds, to see that it works")
        one.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
        one.add_argument("--json", type=Path, metavar="FILE", help="file to write the result to")
    several = commands.add_parser("all", help="all of these, most valuable first", description=campaign.__doc__)
    campaign.add_arguments(several)
    of_tables = commands.add_parser("table", help="write the tables of docs/performance.md from benchmarks/results")
    of_tables.add_argument("--check", action="store_true", help="only say whether they are up to date")
    return whole


if __name__ == "__main__":
    sys.exit(main())
