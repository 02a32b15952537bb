"""Reads the answer of `sbatch --test-only`: SLURM itself judges account, QOS, constraint, reservation and the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# SLURM's words for an option; https://github.com/SchedMD/slurm/blob/master/src/common/slurm_errno.c
OPTIONS = {
    "account": r"invalid account",
    "qos": r"invalid qos",
    "constraint": r"feature",
    "reservation": r"reservation.* (invalid|not)|invalid reservation",
    "partition": r"partition",
    "timeout_min": r"time limit",
    "licenses": r"license",
    "nodelist": r"node name",
    "gres": r"generic resource|gres",
}
# Whether a controller does not answer or nodes are in use says nothing of the options: SLURM would let the job wait.
UNDECIDED = r"contact|connect|timed out|standby|transmitted|configuration file|busy|down, drained"


def refusals(answer: str, launcher: Mapping[str, Any], others: Sequence[str]) -> tuple[list[str], list[str]]:
    """Problems and notes from an answer.

    Args:
        answer: what sbatch says; empty for nothing.
        launcher: the launcher's options.
        others: problems that were found in the output of sinfo, which name sizes. SLURM names none, so its refusal is
            a further problem only if it names an option.
    """
    said = [re.sub(r"^(sbatch: |error: |fatal: |allocation failure: )+", "", line) for line in answer.splitlines()]
    message = "; ".join(dict.fromkeys(filter(None, said)))
    if not message:
        return [], []
    if re.search(UNDECIDED, message, re.IGNORECASE):
        return [], [f"SLURM does not answer whether it accepts the jobs: {message}"]
    named = next((option for option, words in OPTIONS.items() if re.search(words, message, re.IGNORECASE)), None)
    if named is None:
        return [] if others else [f"SLURM does not accept the jobs: {message}"], []
    option = f"hydra.launcher.{named}"
    if any(other.startswith(option) for other in others):
        return [], []
    further = launcher.get("additional_parameters") or {}
    if named in further:
        option = f"hydra.launcher.additional_parameters.{named}"
    value = further.get(named, launcher.get(named))
    return [f"{option}={'null' if value is None else value}: SLURM does not accept it: {message}"], []
