"""The batch script of a job, as options of submitit: what every job does before and after the processes of its run."""

from __future__ import annotations

import hashlib
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from semaim.config.messages import EXIT_HELD
from semaim.core.formatting import quoted
from semaim.errors import UserError
from semaim.sweeps.sweep import LINK, Sweep

COMMON_OPTIONS = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"}
COMMON_OPTIONS |= {"stderr_to_stdout"}  # submitit's options for every executor
# By default a job is signalled a fifth of its limit before it, or this many seconds.
SIGNAL_SHARE, LATEST_SIGNAL_SECONDS = 5, 300


def executor_options(sweep: Sweep) -> dict[str, Any]:
    """The arguments of submitit's executor: the folder of the jobs, its limit of time-outs, the command of Python.

    Raises:
        UserError: if the folder's path has characters that SLURM replaces, and no link to it can be made.
    """
    options = {"max_num_timeout": sweep.launcher.get("max_num_timeout", 0)}
    if sweep.executor == "slurm":
        options["python"] = f"$held_back {shlex.quote(sys.executable)}"
    return {f"{sweep.executor}_{key}": value for key, value in options.items()} | {"folder": plain(sweep.jobs) / "%j"}


def _escaped(value: Any) -> Any:
    r"""A value as sbatch reads it: it drops a \\ even between single quotes."""
    return value.replace("\\", r"\\") if isinstance(value, str) else value


def plain(folder: Path) -> Path:
    r"""The folder by a path without %, \ and :, which SLURM, submitit or PYTHONPATH replace, and all is printable.

    It goes through a link beside each part of the path that has one of them.
    """
    path = Path(folder.anchor)
    for part in folder.parts[1:]:
        path /= part
        if not {"%", "\\", ":"}.isdisjoint(part) or not part.isprintable():
            link = path.with_name(f"{LINK}{hashlib.sha256(part.encode(errors='surrogateescape')).hexdigest()[:8]}")
            try:
                with suppress(FileExistsError):
                    link.symlink_to(part)
            except OSError as error:
                raise UserError(
                    f"SLURM does not take the name of {quoted(path)} as it is, and beside it no link can be made "
                    f"({error.strerror}): choose another runs_dir or sweep.name"
                ) from error
            path = link
    return path


def parameters(sweep: Sweep, dependency: str | None) -> dict[str, Any]:
    """The launcher's options under submitit's names, and the options of every job."""
    options = {key: value for key, value in sweep.launcher.items() if key not in ("submitit_folder", "max_num_timeout")}
    if sweep.executor == "local":  # other options are for SLURM
        options = {key: value for key, value in options.items() if key in COMMON_OPTIONS}
    else:
        cpus = options.get("cpus_per_task")
        extra = {"requeue": True, "kill-on-invalid-dep": "yes"} | (options.get("additional_parameters") or {})
        options, extra = ({key: _escaped(value) for key, value in each.items()} for each in (options, extra))
        options |= {
            "additional_parameters": extra,
            # if one process is killed, all end; since version 22.05 srun needs the number of CPUs per task
            "srun_args": ["--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else [])],
            "signal_delay_s": options.get("signal_delay_s")
            or min(LATEST_SIGNAL_SECONDS, 60 * options["timeout_min"] // SIGNAL_SHARE),
            "setup": [SHELL_SIGNALS, *(options.get("setup") or []), *_exports(sweep), *_setup_lines(sweep)],
            "teardown": _teardown_lines(sweep),
        }
        if dependency is not None:
            options["dependency"] = dependency
    return {key if key in COMMON_OPTIONS else f"{sweep.executor}_{key}": value for key, value in options.items()}


def _exports(sweep: Sweep) -> list[str]:
    """Lines by which the processes import the copy of the code, if there is one, before everything else."""
    if sweep.copied is None:
        return []
    paths = f"{shlex.quote(str(plain(Path(sweep.copied))))}${{PYTHONPATH:+:$PYTHONPATH}}:{shlex.quote(sweep.cwd)}"
    return [f"export PYTHONSAFEPATH=1 PYTHONPATH={paths}"]  # python -m would put the working directory first


# The shell outlives signals that are sent to it too (scancel --full), and waits for its processes.
SHELL_SIGNALS = "trap '' USR2; trap : TERM"


def _setup_lines(sweep: Sweep) -> list[str]:
    """First lines of the batch script: its name, its folder, and how much of the log file is from earlier attempts.

    Its processes start with the signals of SLURM held back, until their handler stands (`semaim.core.signals`).
    coreutils before 8.31 cannot do so: then a process that a signal kills this early is restarted.
    """
    return [
        # SLURM_JOB_ID of the last task of an array is the number of the array: SLURM takes it for all tasks
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
        f'here={shlex.quote(str(plain(sweep.jobs)))}/$job; logged=$(stat -c %s "$here/${{job}}_0_log.err")',
        "held_back='env --block-signal=USR2,TERM'; $held_back true 2>/dev/null || held_back=",
    ]


def _teardown_lines(sweep: Sweep) -> list[str]:
    """Last lines of the batch script: if a process was killed, append a line to `deaths` and requeue the job.

    srun logs how each process ended, in order; bash logs the end of srun itself. The exit code does not help: it does
    not distinguish processes that srun ended because of another one from those that were killed. The job is not
    requeued if SLURM has done so already: then this script is on a node that SLURM has lost.
    """
    signals = "Killed|Segmentation fault|Aborted|Bus error|Illegal instruction|Floating point|Out Of Memory"
    signals += f"|User defined signal 2|Node failure|exit code {EXIT_HELD}$"
    return [
        "code=$?",
        'patiently() { for _ in {1..12}; do "$@" && return; sleep 10; done; return 1; }  # the controller restarts',
        'first=$(tail -c +$((logged + 1)) "$here/${job}_0_log.err" |'
        " grep -E 'task.*: |slurm_script: line|srun: error: Node failure' |"
        " grep -v Terminated | head -n 1 | cut -c 1-200)",
        f"if grep -qE '{signals}' <<<\"$first\" &&",
        '  [ "$(patiently squeue -h -j $job -O State:9,RestartCnt:9 | xargs)" = "RUNNING ${SLURM_RESTART_COUNT:-0}" ]',
        "then",
        f"  first=${{first/Exited with exit code {EXIT_HELD}/another process holds the run folder}}",
        '  echo "${SLURM_RESTART_COUNT:-0} $(date +%FT%T) ${first#srun: error: }" >> "$here/deaths"',
        f'  [ $(wc -l < "$here/deaths") -le {sweep.restarts} ] && patiently scontrol requeue $job && sleep 300',
        "fi",
        "exit $code",
    ]
