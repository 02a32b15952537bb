"""The batch script: its time limit and signal, and folders and options with any characters."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from semaim.config.validate import check_launcher
from semaim.errors import UserError
from semaim.sweeps.batch_script import executor_options, parameters
from semaim.sweeps.sweep import Point, Sweep
from support.fake_slurm import FakeSlurm


def sweep(path: Path = Path("/data/runs/sweep"), **launcher: Any) -> Sweep:
    return Sweep("slurm", launcher, [Point([], "/data/runs/run")], restarts=3, command="", path=path)


@pytest.mark.parametrize(
    ("limit", "asked", "delay"), [(1440, 0, 300), (25, 0, 300), (5, 0, 60), (1, 0, 12), (5, 20, 20)]
)
def test_the_signal_comes_early_enough_and_not_at_the_start(limit: int, asked: int, delay: int) -> None:
    assert parameters(sweep(timeout_min=limit, signal_delay_s=asked), None)["slurm_signal_delay_s"] == delay


@pytest.mark.parametrize("delay", [300, 400])
def test_a_signal_before_the_start_is_refused(delay: int) -> None:
    with pytest.raises(UserError) as refused:
        check_launcher({"timeout_min": 5, "signal_delay_s": delay})
    assert str(refused.value) == (
        f"hydra.launcher.signal_delay_s={delay} is not below the time limit, hydra.launcher.timeout_min=5 (300 s), so "
        f"every job would stop at once: raise timeout_min, or lower signal_delay_s"
    )
    check_launcher({"timeout_min": 5, "signal_delay_s": 299})


@pytest.mark.parametrize("name", ["50%j", "a\\b", "tab\there", "caf\udce9"])
def test_a_name_that_slurm_would_change_is_reached_by_a_link(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "sweep"
    (folder / "jobs").mkdir(parents=True)
    (folder / "jobs" / "here").touch()
    for _ in range(2):
        path = executor_options(sweep(folder))["folder"]
        assert path.name == "%j"
        assert not set("%\\") & set(str(path.parent))
        assert str(path).isprintable()
        assert (path.parent / "here").is_file()
    assert len(list(tmp_path.iterdir())) == 2


def test_other_names_need_no_link(tmp_path: Path) -> None:
    plain = tmp_path / """-a b'c"d $HOME `id` é #;&(""" / "jobs"
    assert executor_options(sweep(plain.parent))["folder"] == plain / "%j"


def test_a_name_that_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(UserError, match=r"50%j as it is.+\(Permission denied\): choose another runs_dir or"):
        executor_options(sweep(tmp_path / "50%j"))


def test_options_keep_their_backslashes_and_are_of_one_line() -> None:
    got = parameters(sweep(timeout_min=5, comment=r"a\b", additional_parameters={"reservation": r"c\d"}), None)
    assert got["slurm_comment"] == r"a\\b"  # sbatch takes one away
    assert got["slurm_additional_parameters"]["reservation"] == r"c\\d"
    for launcher in ({"comment": "a\nb"}, {"additional_parameters": {"comment": "a\nb"}}):
        with pytest.raises(UserError, match=r"^hydra.launcher: comment='a\\nb' must be a text of one line$"):
            check_launcher(launcher)


def test_a_job_never_uses_the_number_that_its_array_shares() -> None:
    """SLURM_JOB_ID of the last task of an array is the number of the array."""
    got = parameters(sweep(timeout_min=5), None)
    first, *others = [*got["slurm_setup"][1:], *got["slurm_teardown"]]
    assert first == "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}"
    assert not [line for line in others if "SLURM_JOB_ID" in line]


@pytest.mark.parametrize(
    ("log", "death"),
    [
        ("srun: error: n2: task 1: Killed", "n2: task 1: Killed"),
        ("srun: error: n1: task 0: User defined signal 2", "n1: task 0: User defined signal 2"),
        ("srun: error: Node failure on n2\nstep 3\nslurmstepd-n2: error: *** STEP 1.0 ON n2 FAILED ***",
         "Node failure on n2"),
        ("srun: error: n1: task 0: Exited with exit code 69", "n1: task 0: another process holds the run folder"),
        ("srun: error: n1: task 0: Exited with exit code 2\nsrun: error: n2: task 1: Killed", None),
        ("srun: error: n1: task 0: Terminated", None),
        ("Killed by the user", None),
    ],
)  # fmt: skip
def test_a_job_is_requeued_after_a_death_and_not_after_an_error(
    tmp_path: Path, log: str, death: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of an earlier attempt do not count, nor does a restart that SLURM has begun already."""
    slurm = FakeSlurm(tmp_path / "slurm")
    for name, text in {"sleep": "", "scontrol": "", "squeue": "RUNNING  0\n"}.items():
        slurm.answers(name, text)
    monkeypatch.setenv("PATH", slurm.path)
    options = parameters(sweep(tmp_path, timeout_min=5), None)
    folder = tmp_path / "jobs" / "12_2"
    folder.mkdir(parents=True)
    file = folder / "12_2_0_log.err"
    file.write_text("srun: error: n1: task 0: Killed\n")
    command = [*options["slurm_setup"], f"printf '%s\\n' {shlex.quote(log)} >> {shlex.quote(str(file))}; false"]
    script = "\n".join([*command, *options["slurm_teardown"]])
    names = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(["bash", "-c", script], env=os.environ | names, check=False)
    assert done.returncode == 1
    assert slurm.asked("scontrol") == (["requeue 12_2"] if death else [])
    deaths = (folder / "deaths").read_text().split(maxsplit=2)[2] if death else None
    assert deaths == (death and f"{death}\n")
    slurm.answers("squeue", "RUNNING  1\n")
    subprocess.run(["bash", "-c", script], env=os.environ | names, check=False)
    assert slurm.asked("scontrol") == []
