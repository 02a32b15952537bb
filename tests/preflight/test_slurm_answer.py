"""Answers of `sbatch --test-only`, recorded on Slurm 22.05, as problems that name the option."""

from __future__ import annotations

import pytest

from semaim.preflight.slurm_answer import refusals

ACCOUNT = "Invalid account or account/partition combination specified"
OPTIONS = {"account": "nope", "qos": None, "constraint": "a100", "additional_parameters": {"reservation": "monday"}}
SMALLER = ["hydra.launcher.gpus_per_node=9: partition main has 0 nodes with 9 GPUs (at most 2), 1 must have them"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (f"allocation failure: {ACCOUNT}", f"hydra.launcher.account=nope: SLURM does not accept it: {ACCOUNT}"),
        (
            "allocation failure: Invalid qos specification",
            "hydra.launcher.qos=null: SLURM does not accept it: Invalid qos specification",
        ),
        (
            "allocation failure: Invalid feature specification",
            "hydra.launcher.constraint=a100: SLURM does not accept it: Invalid feature specification",
        ),
        (
            "allocation failure: Requested reservation is invalid",
            "hydra.launcher.additional_parameters.reservation=monday: SLURM does not accept it: Requested reservation "
            "is invalid",
        ),
        (
            "sbatch: error: Invalid --mail-type specification",
            "SLURM does not accept the jobs: Invalid --mail-type specification",
        ),
        (  # of a plugin of the site
            "sbatch: error: say what it is for\nallocation failure: Unspecified error",
            "SLURM does not accept the jobs: say what it is for; Unspecified error",
        ),
    ],
)
def test_refusals_name_their_option(answer: str, problem: str) -> None:
    assert refusals(answer, OPTIONS, []) == ([problem], [])
    assert refusals(answer, OPTIONS, SMALLER) == ([problem] if problem.startswith("hydra") else [], [])


def test_sizes_that_sinfo_has_explained_are_not_repeated() -> None:
    answer = "allocation failure: Requested node configuration is not available"
    assert refusals(answer, OPTIONS, SMALLER) == ([], [])
    assert refusals(answer, OPTIONS, []) == (
        ["SLURM does not accept the jobs: Requested node configuration is not available"],
        [],
    )
    known = ["hydra.launcher.partition=x: there is no such partition; choose from main"]
    answer = "sbatch: error: invalid partition specified: x\nallocation failure: Invalid partition name specified"
    assert refusals(answer, {"partition": "x"}, known) == ([], [])


@pytest.mark.parametrize(
    "answer",
    [
        "allocation failure: Socket timed out on send/recv operation",
        "allocation failure: Unable to contact slurm controller (connect failure)",
        "sbatch: fatal: Unable to process configuration file",
        "sbatch timed out after 60 s",
        "allocation failure: Requested nodes are busy",
    ],
)
def test_a_controller_that_does_not_answer_refuses_nothing(answer: str) -> None:
    problems, (note,) = refusals(answer, OPTIONS, [])
    assert problems == []
    assert note.startswith("SLURM does not answer whether it accepts the jobs: ")
    assert refusals("", OPTIONS, []) == ([], [])
