"""The batch script of a job, as options of submitit: what every job does before and after the processes of its run."""

from __future__ import annotations

import shlex
from typing import Any

from semaim.sweeps.sweep import Sweep

COMMON_OPTIONS = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"}
COMMON_OPTIONS |= {"stderr_to_stdout"}  # submitit's options for every executor


def parameters(sweep: Sweep, dependency: str | None) -> dict[str, Any]:
    """The launcher's options under submitit's names, and the options of every job."""
    options = {key: value for key, value in sweep.launcher.items() if key not in ("submitit_folder", "max_num_timeout")}
    if sweep.executor == "local":  # other options are for SLURM
        options = {key: value for key, value in options.items() if key in COMMON_OPTIONS}
    else:
        cpus = options.get("cpus_per_task")
        extra = {"requeue": True, "kill-on-invalid-dep": "yes"} | (options.get("additional_parameters") or {})
        options |= {
            "additional_parameters": extra,
            # if one process is killed, all end; since version 22.05 srun needs the number of CPUs per task
            "srun_args": ["--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else [])],
            "setup": [*(options.get("setup") or []), *_exports(sweep), *_setup_lines(sweep)],
            "teardown": _teardown_lines(sweep),
        }
        if dependency is not None:
            options["dependency"] = dependency
    return {key if key in COMMON_OPTIONS else f"{sweep.executor}_{key}": value for key, value in options.items()}


def _exports(sweep: Sweep) -> list[str]:
    """Lines by which the processes import the copy of the code, if there is one, before everything else."""
    if sweep.copied is None:
        return []
    paths = f"{shlex.quote(sweep.copied)}${{PYTHONPATH:+:$PYTHONPATH}}:{shlex.quote(sweep.cwd)}"
    return [f"export PYTHONSAFEPATH=1 PYTHONPATH={paths}"]  # python -m would put the working directory first


def _setup_lines(sweep: Sweep) -> list[str]:
    """First lines of the batch script: find the log file, and its size from earlier attempts."""
    return [
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
        f"here={shlex.quote(str(sweep.jobs))}/$job; logged=$(stat -c %s $here/${{job}}_0_log.err)",
    ]


def _teardown_lines(sweep: Sweep) -> list[str]:
    """Last lines of the batch script: if a process was killed, append a line to `deaths` and requeue the job.

    srun logs how each process ended, in order; bash logs the end of srun itself. The exit code does not help: it does
    not distinguish processes that srun ended because of another one from those that were killed.
    """
    signals = "Killed|Segmentation fault|Aborted|Bus error|Illegal instruction|Floating point|Out Of Memory"
    return [
        "code=$?",
        "first=$(tail -c +$((logged + 1)) $here/${job}_0_log.err | grep -E 'task.*: |slurm_script: line' |"
        " grep -v Terminated | head -n 1 | cut -c 1-200)",
        f'if grep -qE \'{signals}\' <<<"$first" && [ "$(squeue -h -j $SLURM_JOB_ID -o %T)" = RUNNING ]; then',
        '  echo "${SLURM_RESTART_COUNT:-0} $(date +%FT%T) ${first#srun: error: }" >> $here/deaths',
        f"  [ $(wc -l < $here/deaths) -le {sweep.restarts} ] && scontrol requeue $SLURM_JOB_ID && sleep 300",
        "fi",
        "exit $code",
    ]
