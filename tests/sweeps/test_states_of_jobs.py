"""States of points whose job is one of SLURM: what its commands say, in words, and what follows if they say nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.core import slurm_job
from semaim.core.files import write_json
from semaim.errors import SweepFailed
from semaim.runs.folder import RunFolder
from semaim.runs.journal import Journal
from semaim.sweeps import commands
from semaim.sweeps.states import states
from semaim.sweeps.sweep import Point, Sweep
from semaim.sweeps.waiting import wait
from support.fake_slurm import FakeSlurm
from support.folders import contents
from support.holding import holding
from support.points import RESULT, shown, sweep_of


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM's commands, which know no job; a failing one is tried once more, at once."""
    commands = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", commands.path)
    monkeypatch.setattr(slurm_job, "RETRY_SECONDS", 0.0)
    for name in ("squeue", "sacct", "scancel"):
        commands.answers(name)
    return commands


def run_of(path: Path, **status: object) -> Point:
    """A point whose folder has a status, of job 12_3 by default."""
    path.mkdir()
    write_json(
        path / "status.json", {"job": "12_3", "restarts": 0, "step": 5, "last_step": 9, "batch_size": 1} | status
    )
    return Point([f"a={path.name}"], str(path), job="12_3")


@pytest.mark.parametrize(
    ("job", "state", "expected"),
    [
        ("RUNNING|0|n1|None", "running", ("running", "step 5/9")),
        ("RUNNING|1|n1|None", "running", ("starting", "n1")),
        ("CONFIGURING|1|n1|None", "requeued", ("starting", "CONFIGURING: n1")),
        ("SUSPENDED|0|n1|None", "running", ("suspended", "SUSPENDED")),
        ("STOPPED|0|n1|None", "running", ("suspended", "STOPPED")),
        ("COMPLETING|0|n1|None", "running", ("ending", "COMPLETING: step 5/9")),
        ("COMPLETING|1|n1|None", "running", ("ending", "COMPLETING")),  # is saving, to be requeued
        ("STAGE_OUT|0|n1|None", "finished", ("finished", "train/loss 0.5")),
        ("PENDING|1||BeginTime", "requeued", ("requeued", "BeginTime")),  # preempted
        ("REQUEUE_HOLD|1||held", "requeued", ("requeued", "REQUEUE_HOLD: held")),
        ("REVOKED|0||None", "running", ("unknown", "REVOKED; the run folder says: running")),
        ("CANCELLED|0|n1|None", "requeued", ("interrupted", "CANCELLED")),
        ("OUT_OF_MEMORY|0|n1|OutOfMemory", "running", ("vanished", "OUT_OF_MEMORY: OutOfMemory")),
        ("NODE_FAIL|0|n1|NodeDown", "running", ("vanished", "NODE_FAIL: NodeDown")),
        ("PREEMPTED|0|n1|None", "interrupted", ("interrupted", "PREEMPTED: by SIGTERM")),
        ("DEADLINE|0||DeadLine", "new", ("vanished", "DEADLINE: DeadLine")),
    ],
)  # fmt: skip
def test_words_for_what_slurm_says(
    tmp_path: Path, slurm: FakeSlurm, job: str, state: str, expected: tuple[str, str]
) -> None:
    slurm.answers("squeue", f"12_3|{job}|\n")
    result = {"metric": "loss", "result": {"loss": 0.5}} if state == "finished" else {}
    point = run_of(
        tmp_path / "run", state=state, **result, **({"error": "by SIGTERM"} if state == "interrupted" else {})
    )
    if state == "new":
        (tmp_path / "run" / "status.json").unlink()
    sweep = sweep_of(tmp_path, "slurm", point)
    assert shown(sweep) == shown(sweep) == [expected]


def test_an_error_is_said_once_however_often_one_looks(tmp_path: Path, slurm: FakeSlurm) -> None:
    """The first look writes SLURM's state to the folder; the accounts have other words for it than the controller."""
    slurm.answers("squeue", "12_3|FAILED|0|n1|NonZeroExitCode|\n")
    sweep = sweep_of(tmp_path, "slurm", run_of(tmp_path / "run", state="running"))
    (sweep.jobs / "12_3").mkdir(parents=True)
    (sweep.jobs / "12_3" / "12_3_0_log.err").write_text("srun: error: n1: task 0: Killed\n")
    expected = [("vanished", "FAILED: NonZeroExitCode: srun: error: n1: task 0: Killed")]
    assert shown(sweep) == expected
    assert RunFolder(tmp_path / "run").status()["error"] == expected[0][1]
    assert shown(sweep) == expected
    slurm.answers("squeue")
    slurm.answers("sacct", "12_3|FAILED|9:0|n1\n")
    assert shown(sweep) == expected
    slurm.answers("sacct")
    assert shown(sweep) == expected


def test_an_error_that_could_not_be_stored(tmp_path: Path, slurm: FakeSlurm) -> None:
    """On a full disk the program only prints it."""
    slurm.answers("squeue", "12_3|FAILED|0|n1|NonZeroExitCode|\n")
    sweep = sweep_of(tmp_path, "slurm", run_of(tmp_path / "run", state="running"))
    (sweep.jobs / "12_3").mkdir(parents=True)
    own, of_srun = "error: x.pt cannot be written (No space left)", "srun: error: n1: task 0: Exited with exit code 1"
    (sweep.jobs / "12_3" / "12_3_0_log.err").write_text(f"{own}\n{of_srun}\n")
    assert shown(sweep) == [("failed", "x.pt cannot be written (No space left)")]
    assert RunFolder(tmp_path / "run").status()["state"] == "failed"


@pytest.mark.usefixtures("slurm")
def test_a_task_that_was_cancelled_before_it_started(tmp_path: Path) -> None:
    """Neither the controller nor the accounts list it any more, as for one that has ended long ago."""
    points = [Point([f"a={task}"], str(tmp_path / str(task)), job=f"12_{task}") for task in range(2)]
    sweep = sweep_of(tmp_path, "slurm", *points)
    (sweep.jobs / "12_0").mkdir(parents=True)
    (sweep.jobs / "12_0" / "12_0_submitted.pkl").touch()
    (sweep.jobs / "12_1").mkdir()
    (sweep.jobs / "12_1" / "12_1_0_log.out").touch()
    assert shown(sweep) == [
        ("interrupted", "CANCELLED before it started"), ("vanished", "SLURM no longer lists the job"),
    ]  # fmt: skip


def test_a_run_may_end_before_the_script_that_started_it(tmp_path: Path, slurm: FakeSlurm) -> None:
    """The script, or the shell of `salloc`, goes on. A job of a sweep has nothing else to do, but to be requeued."""
    slurm.answers("squeue", "12_3|RUNNING|0|n1|None|\n")
    sweep = sweep_of(tmp_path, "slurm", run_of(tmp_path / "of a sweep", state="running"))
    assert [name for name, _ in shown(sweep)] == ["running"]
    run = run_of(tmp_path / "run", state="running", step=2, last_step=4)
    alone = Sweep("slurm", {}, [run], 0, "", path=run.folder.path)
    with holding(run.folder.path):
        assert shown(alone) == [("running", "step 2/4")]
        write_json(run.folder.path / "status.json", run.folder.status() | {"restarts": 1})
        assert shown(alone) == [("running", "step 2/4")], "it has the count of a requeued job that submitted its own"
        write_json(run.folder.path / "status.json", run.folder.status() | {"restarts": 0})
    assert shown(alone) == [("vanished", "its process is gone")]
    write_json(run.folder.path / "status.json", run.folder.status() | {"state": "interrupted", "error": "stopped"})
    assert shown(alone) == [("interrupted", "stopped")]
    slurm.answers("squeue", "12_3|PENDING|1||BeginTime|\n")
    assert shown(alone) == [("requeued", "BeginTime")]


NOTHING = {"code": 1, "error": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"}


def stored(folder: Path) -> dict[str, bytes]:
    ignored = (".asked", ".lock")
    return {name: content for name, content in contents(folder).items() if Path(name).suffix not in ignored}


@pytest.mark.parametrize("failing", ["squeue", "sacct"])
def test_nothing_is_written_while_slurm_does_not_answer(
    tmp_path: Path, slurm: FakeSlurm, failing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does `retry` submit anything. The summary has said that the sweep has failed."""
    point, done = run_of(tmp_path / "run", state="running"), run_of(tmp_path / "done", **RESULT)
    sweep = sweep_of(tmp_path, "slurm", point, done)
    Journal(sweep.folder.journal).status("FAILED")
    slurm.answers(failing, **NOTHING)  # type: ignore[arg-type]
    before = stored(tmp_path)
    assert main(["status", str(sweep.path)]) == 0
    said = capsys.readouterr().out
    assert "unknown   SLURM" in said
    assert "Unable to contact slurm controller (connect failure)); the run folder says: running" in said
    assert "finished  train/loss 0.5" in said
    assert main(["retry", "--failed", str(sweep.path)]) == 0
    assert "submitted 0 jobs" in capsys.readouterr().out
    assert stored(tmp_path) == before


def test_cancel_says_that_it_does_not_know(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(tmp_path, "slurm", run_of(tmp_path / "run", state="running"))
    slurm.answers("squeue", **NOTHING)  # type: ignore[arg-type]
    monkeypatch.setattr(commands, "CANCEL_TIMEOUT_SECONDS", 0.0)
    assert main(["cancel", str(sweep.path)]) == 2
    assert "jobs that were asked to stop, but may not have ended: 12_3 (SLURM does not" in capsys.readouterr().err
    assert slurm.asked("scancel") == ["12_3"]
    slurm.answers("scancel", **NOTHING)  # type: ignore[arg-type]
    assert main(["cancel", str(sweep.path)]) == 2
    assert "SLURM does not accept the request (scancel: slurm_load_jobs error: Un" in capsys.readouterr().err
    slurm.answers("scancel", error="scancel: error: Kill job error on job id 12_3: Invalid job id specified\n", code=1)
    slurm.does("squeue", '[ $(wc -l < "$0.asked") -gt 1 ] || echo "12_3|RUNNING|0|n1|None|"')
    slurm.asked("squeue")
    assert main(["cancel", str(sweep.path)]) == 0, "it has ended meanwhile"


def test_waiting_goes_on_without_an_answer_but_not_for_ever(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fifth question is answered: the job runs; no later one is."""
    caplog.set_level("INFO", "semaim")
    answers = '[ $(wc -l < "$0.asked") = 5 ] && echo "12_3|RUNNING|0|n1|None|"'
    slurm.does("squeue", f'{answers} || {{ echo "{NOTHING["error"]}" >&2; exit 1; }}')
    sweep = sweep_of(tmp_path, "slurm", run_of(tmp_path / "run", state="running"))
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(
        SweepFailed, match=r"^no longer waiting, since it has not been known for 6 h 00 min how the jobs"
    ):
        wait(sweep)
    said = [record.message for record in caplog.records]
    assert [line for line in said if "answer" not in line] == ["run (job 12_3): running"]
    assert [line.rpartition(";")[2] for line in said if "still waiting" in line] == [
        " still waiting, for at most 6 h 00 min"
    ] * 2
    assert said.count("SLURM answers again") == 1
    assert RunFolder(tmp_path / "run").status()["state"] == "running"


def test_one_question_for_all_jobs_of_a_sweep(tmp_path: Path, slurm: FakeSlurm) -> None:
    jobs = [f"{array}_{task}" for array in range(10, 14) for task in range(3)]
    slurm.answers("squeue", "".join(f"{job}|PENDING|0||Priority|\n" for job in jobs[:6]))
    sweep = sweep_of(tmp_path, "slurm", *(Point([f"a={job}"], str(tmp_path / job), job=job) for job in jobs))
    assert [state.name for state in states(sweep)] == ["pending"] * 6 + ["interrupted"] * 6
    assert [line.rpartition("--jobs=")[2] for line in slurm.asked("squeue")] == ["10,11,12,13"]
    assert ["--jobs=12,13 " in line for line in slurm.asked("sacct")] == [True]


@pytest.mark.usefixtures("slurm")
def test_jobs_of_another_user_that_slurm_hides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(tmp_path, "slurm", run_of(tmp_path / "run", state="running"))
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    assert shown(sweep) == [("unknown", "SLURM shows no such job to you; the run folder says: running")]
    assert RunFolder(tmp_path / "run").status()["state"] == "running"
