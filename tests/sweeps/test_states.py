"""States of points: a point is finished when its job has nothing left to do for it."""

from __future__ import annotations

import json
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
from semaim.sweeps.sweep import Executor, Point, Sweep
from semaim.sweeps.waiting import wait
from support.fake_slurm import FakeSlurm
from support.folders import contents
from support.holding import holding

RESULT = {"state": "finished", "metric": "loss", "result": {"loss": 0.5}}


def sweep_of(tmp_path: Path, executor: Executor, *points: Point) -> Sweep:
    sweep = Sweep(executor, {}, list(points), 0, "semaim run -m", path=tmp_path / "sweep")
    sweep.save()
    return sweep


def finished(path: Path) -> Path:
    path.mkdir()
    write_json(path / "status.json", RESULT)
    return path


def shown(sweep: Sweep) -> list[tuple[str, str]]:
    return [(state.name, state.detail) for state in states(sweep)]


def test_a_point_is_finished_once_its_results_are_sent(tmp_path: Path) -> None:
    one, two = (finished(tmp_path / name) for name in ("one", "two"))
    with holding(one, name="submitit") as process:
        job = str(process.pid)
        sweep = sweep_of(tmp_path, "local", Point(["a=1"], str(one), job=job), Point(["a=2"], str(two), job=job))
        assert shown(sweep) == [("ending", "finished, sends its results to MLflow"), ("finished", "train/loss 0.5")]
    assert shown(sweep) == [("finished", "train/loss 0.5")] * 2


def test_a_point_is_finished_once_its_evaluations_are(tmp_path: Path) -> None:
    one, knn = finished(tmp_path / "one"), tmp_path / "knn"
    with holding(name="submitit") as job:
        point = Point(["a=1"], str(one), job=str(job.pid), then=[str(knn)])
        sweep = sweep_of(tmp_path, "local", point)
        assert shown(sweep) == [("ending", "finished, then knn")]
        with holding(knn):
            write_json(knn / "status.json", RESULT)
            assert shown(sweep) == [("ending", "finished, sends its results to MLflow")]
        assert shown(sweep) == [("finished", "train/loss 0.5")]
        (knn / "status.json").unlink()
    assert shown(sweep) == [("vanished", "its process is gone")]


def test_between_two_runs_of_one_process(tmp_path: Path) -> None:
    """The process holds no run folder while it prepares the next run."""
    first, second, third = finished(tmp_path / "first"), tmp_path / "second", tmp_path / "third"
    now = time.time_ns()
    points = [
        Point(["a=1"], str(first), job=f"here_0_{now}"),
        Point(["a=2"], str(finished(second)), job=f"here_1_{now + 1}", then=[str(tmp_path / "knn")]),
        Point(["a=3"], str(third)),
    ]
    sweep = sweep_of(tmp_path, "basic", *points)
    with holding(sweep.path):
        assert shown(sweep) == [
            ("finished", "train/loss 0.5"), ("ending", "finished, then knn"), ("pending", "for earlier runs"),
        ]  # fmt: skip
    assert shown(sweep) == [
        ("finished", "train/loss 0.5"), ("vanished", "its process is gone"), ("new", "never submitted"),
    ]  # fmt: skip


def test_the_folder_and_the_sweep_use_the_same_words(tmp_path: Path) -> None:
    """A run without a job shows what its folder holds; a dead one is recorded in its folder."""
    held = {"interrupted": "stopped by SIGTERM", "failed": "an error", "vanished": "the process was killed"}
    for state, error in held.items():
        (tmp_path / state).mkdir()
        write_json(tmp_path / state / "status.json", {"state": state, "error": error})
    (tmp_path / "dead").mkdir()
    write_json(tmp_path / "dead" / "status.json", {"state": "running"})
    names = [*held, "dead", "absent"]
    sweep = sweep_of(tmp_path, "local", *(Point([f"a={name}"], str(tmp_path / name)) for name in names))
    expected = [*held.items(), ("vanished", "its process is gone"), ("new", "never submitted")]
    assert shown(sweep) == expected
    assert RunFolder(tmp_path / "dead").status() == {"state": "vanished", "error": "its process is gone"}
    assert [point.folder.state() for point in sweep.points] == [state for state, _ in expected]
    assert not (tmp_path / "absent").exists()
    assert shown(sweep) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"after": 0},
        {"after": -1},
        {"after": 7},
        {"job": "--user=me"},
        {"job": "../1"},
        {"run_dir": "x\0y"},
        {"run_dir": "x"},
        {"then": [""]},
        None,
    ],
)
def test_a_sweep_with_impossible_values_is_damaged(
    tmp_path: Path, change: dict[str, object] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_of(tmp_path, "local", Point(["a=1"], str(finished(tmp_path / "one")), job="1")).path / "sweep.json"
    stored = json.loads(path.read_text())
    stored["points"] = [] if change is None else [stored["points"][0] | change]
    path.write_text(json.dumps(stored))
    assert main(["ls", str(tmp_path)]) == 0
    assert "damaged: sweep.json" in capsys.readouterr().out
    assert main(["cancel", str(path.parent)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} is damaged, ")


# Jobs of SLURM


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
