"""The batch script: its time limit and signal, and folders and options with any characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from semaim.config.validate import check_launcher
from semaim.errors import UserError
from semaim.sweeps.batch_script import executor_options, parameters
from semaim.sweeps.sweep import Point, Sweep


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
