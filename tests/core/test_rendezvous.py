"""Processes with the variables of srun find each other, or say why not; here without SLURM, on this machine."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from semaim.core import distributed, rendezvous
from semaim.core.ranks import Ranks
from semaim.errors import UserError
from support.commands import ENVIRONMENT, PATIENCE, RUN, SMALL, start

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_RESTART_COUNT": "2", "SLURMD_NODENAME": "localhost"}
STEP |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_GTIDS": "0,1", "SLURM_CPUS_ON_NODE": "2"}
FILE = ".srun_7.1_2.json"
ALONE = (
    "SLURM_STEP_NUM_TASKS=2 says that srun started 2 processes, which train together: start semaim in each of them, "
    "with the same options, or alone with env -u SLURM_STEP_NUM_TASKS semaim run ..."
)


def task(rank: int) -> dict[str, str]:
    return STEP | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def outputs(folder: Path, *overrides: list[str]) -> list[tuple[int | None, str]]:
    """Exit code and output of the two processes of a step, each with its options."""
    running = [
        start([*RUN, *SMALL, "trainer.max_steps=2", *overrides[rank]], folder, ENVIRONMENT | task(rank))
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=PATIENCE)[0] for process in running]
    return [(process.wait(), text) for process, text in zip(running, said, strict=True)]


def test_tasks_of_a_step_train_together_and_one_speaks(tmp_path: Path) -> None:
    for expected in ("6 steps of", "is finished already"):  # the step may start another run
        options = ["run_name=both", "trainer.max_steps=6"]
        (code, said), (other_code, other) = outputs(tmp_path, options, options)
        other = re.sub(r"^\[Gloo\].*\n", "", other, flags=re.MULTILINE)  # torch 2.9 prints this in every process
        assert (code, other_code, other) == (0, 0, ""), said + other
        assert expected in said
    assert [each.name for each in (tmp_path / "runs").iterdir()] == ["both"]


def test_tasks_with_different_options_are_refused(tmp_path: Path) -> None:
    done = outputs(tmp_path, ["seed=0"], ["seed=1"])
    assert [code for code, _ in done] == [2, 2]
    common = " ".join(("tracking=none trainer.batch_size=16 trainer.log_every_steps=1 'evaluators=[]'",
                       "model.embed_dim=32 model.num_heads=2 trainer.max_steps=2"))  # fmt: skip
    message = f'error: process 0 has the options "{common} seed=0", but process 1 has "{common} seed=1"; {ALONE}\n'
    assert [said for _, said in done] == [message, message]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("rank", "problem"),
    [
        (0, "1 of 2 processes came within 0 s"),
        (1, "process 1 of 2 waited 0 s for the first to write {file}, which all must see"),
    ],
)
def test_a_process_that_no_other_meets_ends(
    rank: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `srun -n2 bash -c 'if [ $SLURM_PROCID = 0 ]; then semaim run; fi'`."""
    for name, value in task(rank).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous, "TIMEOUT", timedelta(seconds=0.2))
    with pytest.raises(UserError) as error:
        distributed.start("cpu", tmp_path)
    assert str(error.value) == f"{problem.format(file=tmp_path / FILE)}; {ALONE}"
    assert not (tmp_path / FILE).exists()


def test_a_stray_rank_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as told:
        rendezvous.store_of(Ranks("torchrun", 0, 2, 0, 2), tmp_path)
    assert str(told.value) == (
        "RANK=0 says that torchrun started this process, but: environment variable MASTER_ADDR expected, but not set; "
        "start it by torchrun, or alone with env -u RANK semaim run ..."
    )
