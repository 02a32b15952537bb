"""States of jobs, from what SLURM's commands print.

The outputs of 22.05 were recorded from version 22.05.8. Those of other versions are written after SLURM's sources: the
fields by `_print_job_job_id`, `_print_job_job_state` and `_print_job_reason` in src/squeue/print.c, the format
"field:|" by `_parse_long_token` in src/squeue/opts.c, the words of states by `job_state_string` in
src/common/slurm_protocol_defs.c and doc/html/job_state_codes.shtml, and the question for one job or for all by
src/squeue/squeue.c.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from semaim.core import slurm_job
from semaim.core.slurm_job import NOT_LISTED, JobState, NoAnswer, ask, job_states
from support.fake_slurm import FakeSlurm

TIMED_OUT = "slurm_load_jobs error: Socket timed out on send/recv operation\n"
NO_SUCH_JOB = "slurm_load_jobs error: Invalid job id specified\n"
NO_ACCOUNTING = "Slurm accounting storage is disabled\n"
NO_DATABASE = """\
sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:127.0.0.1:6819: \
Connection refused
sacct: error: Sending PersistInit msg: Connection refused
sacct: error: Problem talking to the database: Connection refused
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM's commands, which know no job; a failing one is tried once more, at once."""
    commands = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", commands.path)
    monkeypatch.setattr(slurm_job, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr("time.sleep", lambda _: None)
    commands.answers("squeue")
    commands.answers("sacct")
    return commands


QUEUES = {
    "20.11": """\
1201_0|RUNNING|0|gpu01|None|
1201_[1-3%1]|PENDING|0||JobArrayTaskLimit|
1300|PENDING|2||BeginTime|
1301|REQUEUE_HOLD|1||job requeued in held state|
1302|CONFIGURING|0|gpu[01-02]|None|
""",
    "21.08": """\
1201_0|STOPPED|0|gpu01|None|
1201_1|COMPLETED|0|gpu01|None|
1201_2|TIMEOUT|1|gpu01|TimeLimit|
1201_3|OUT_OF_MEMORY|0|gpu02|OutOfMemory|
1300|NODE_FAIL|0|gpu02|NodeDown|
1301|STAGE_OUT|0|gpu02|None|
1302|BOOT_FAIL|0||None|
""",
    "22.05": """\
1201_3|PENDING|0||JobArrayTaskLimit|
1201_0|PENDING|1||job requeued in held state|
1201_1|COMPLETING|1|n1|None|
1201_2|SUSPENDED|0|n1|None|
1300|CANCELLED|0||DependencyNeverSatisfied|
1301|SPECIAL_EXIT|1||job requeued in held state|
1302|FAILED|0|n1|NonZeroExitCode|
1303_[0-3]|CANCELLED|0||JobHeldUser|
1304|PENDING|0||DependencyNeverSatisfied|
""",
    "23.02": """\
1201_0|SIGNALING|0|gpu01|None|
1201_1|RESIZING|0|gpu01|None|
1201_2|DEADLINE|0||DeadLine|
1201_3|PREEMPTED|0|gpu01|None|
1300|REQUEUED|1|(null)|None|
1301|REQUEUE_FED|1||None|
1302|REVOKED|0||None|
""",
    "24.05": """\
1201_0|RESV_DEL_HOLD|0|(null)|ReservationDeleted|
1201_[1-3]|PENDING|0|(null)|launch failed requeued held|
1300|POWER_UP_NODE|0|gpu07|None|
1301|UPDATE_DB|0|gpu07|None|
1302|CANCELLED|0|gpu07|None|
""",
}
EXPECTED: dict[str, dict[str, JobState]] = {
    "20.11": {
        "1201_0": JobState("running", "", 0, "gpu01"),
        **dict.fromkeys(["1201_1", "1201_2", "1201_3"], JobState("waiting", "JobArrayTaskLimit")),
        "1300": JobState("waiting", "BeginTime", 2),
        "1301": JobState("waiting", "REQUEUE_HOLD: job requeued in held state", 1),
        "1302": JobState("running", "CONFIGURING", 0, "gpu[01-02]"),
    },
    "21.08": {
        "1201_0": JobState("suspended", "STOPPED", 0, "gpu01"),
        "1201_1": JobState("over", "COMPLETED", 0, "gpu01"),
        "1201_2": JobState("over", "TIMEOUT: TimeLimit", 1, "gpu01"),
        "1201_3": JobState("over", "OUT_OF_MEMORY: OutOfMemory", 0, "gpu02"),
        "1300": JobState("over", "NODE_FAIL: NodeDown", 0, "gpu02"),
        "1301": JobState("ending", "STAGE_OUT", 0, "gpu02"),
        "1302": JobState("over", "BOOT_FAIL"),
    },
    "22.05": {
        "1201_0": JobState("waiting", "job requeued in held state", 1),
        "1201_1": JobState("ending", "COMPLETING", 1, "n1"),
        "1201_2": JobState("suspended", "SUSPENDED", 0, "n1"),
        "1201_3": JobState("waiting", "JobArrayTaskLimit"),
        "1300": JobState("over", "CANCELLED: DependencyNeverSatisfied"),
        "1301": JobState("waiting", "SPECIAL_EXIT: job requeued in held state", 1),
        "1302": JobState("over", "FAILED: NonZeroExitCode", 0, "n1"),
        "1303_3": JobState("over", "CANCELLED before it started"),
        "1304": JobState("waiting", "DependencyNeverSatisfied"),
    },
    "23.02": {
        "1201_0": JobState("running", "SIGNALING", 0, "gpu01"),
        "1201_1": JobState("running", "RESIZING", 0, "gpu01"),
        "1201_2": JobState("over", "DEADLINE: DeadLine"),
        "1201_3": JobState("over", "PREEMPTED", 0, "gpu01"),
        "1300": JobState("waiting", "REQUEUED", 1),
        "1301": JobState("waiting", "REQUEUE_FED", 1),
        "1302": JobState("unknown", "REVOKED"),
    },
    "24.05": {
        "1201_0": JobState("waiting", "RESV_DEL_HOLD: ReservationDeleted"),
        **dict.fromkeys(["1201_1", "1201_2", "1201_3"], JobState("waiting", "launch failed requeued held")),
        "1300": JobState("running", "POWER_UP_NODE", 0, "gpu07"),
        "1301": JobState("unknown", "UPDATE_DB", 0, "gpu07"),
        "1302": JobState("over", "CANCELLED", 0, "gpu07"),
    },
}


@pytest.mark.parametrize("version", QUEUES)
def test_what_the_controller_says(slurm: FakeSlurm, version: str) -> None:
    """One question for all jobs, by array; none to the accounts."""
    slurm.answers("squeue", QUEUES[version])
    assert job_states(EXPECTED[version]) == EXPECTED[version]
    (asked,) = slurm.asked("squeue")
    arrays = sorted({job.split("_")[0] for job in EXPECTED[version]})
    assert asked.split(" --jobs=")[1] == ",".join(arrays)
    assert not slurm.asked("sacct")


def test_what_the_accounts_say_of_jobs_that_are_no_longer_listed(slurm: FakeSlurm) -> None:
    slurm.answers("squeue", error=NO_SUCH_JOB, code=1)
    accounts = """\
8_0|COMPLETED|0:0|n1
8_1|FAILED|7:0|n1
8_2|CANCELLED by 1000|0:0|n1
8_[3-4,6%2]|CANCELLED by 0|0:0|None assigned
8_7|REQUEUED|0:0|n1
8_8|OUT_OF_MEMORY|0:125|n2
8_9|RUNNING|0:0|n1
8_[10,12-16:2%4]|PENDING|0:0|None assigned
8_17|REVOKED|0:0|None assigned
"""
    slurm.answers("sacct", accounts)
    reasons = {
        0: "COMPLETED",
        1: "FAILED: exit code 7:0",
        2: "CANCELLED by 1000",
        **dict.fromkeys((3, 4, 6), "CANCELLED by 0 before it started"),
        7: "CANCELLED before it started again",
        8: "OUT_OF_MEMORY",
        # the controller knows better which jobs are alive, and the accounts leave out cancelled tasks
        **dict.fromkeys((5, 9, 10, 11, 12, 14, 16), NOT_LISTED),
        17: "REVOKED",
    }
    states = job_states([f"8_{task}" for task in reasons])
    assert {job: state.reason for job, state in states.items()} == {f"8_{task}": r for task, r in reasons.items()}
    assert {job for job, state in states.items() if state.state != "over"} == {"8_17"}
    assert len(slurm.asked("squeue")) == len(slurm.asked("sacct")) == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": TIMED_OUT, "code": 1}, TIMED_OUT.strip()),
        ({"error": TIMED_OUT, "code": 0}, TIMED_OUT.strip()),
        ({"output": "1_0|RUNNING|0|n1|None|\nWelcome to the cluster\n"}, "prints 'Welcome to the cluster'"),
        ({"output": "1_[0,2,4,...]|PENDING|0||Priority|\n"}, "prints '1_[0,2,4,...]|PENDING|0||Priority|'"),
        ({"code": 137}, "exit code 137"),
    ],
)
def test_a_controller_without_an_answer_ends_no_job(slurm: FakeSlurm, answer: dict[str, object], why: str) -> None:
    slurm.answers("squeue", **answer)  # type: ignore[arg-type]
    states = job_states(["1_0", "2"])
    assert {state.state for state in states.values()} == {"unknown"}
    assert why in states["2"].reason
    assert not slurm.asked("sacct")


def test_commands_that_hang_or_are_missing(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "ANSWER_SECONDS", 0.2)
    slurm.does("squeue", "exec sleep 60")
    with pytest.raises(NoAnswer, match=r"^squeue did not end within 0 s$"):
        ask("squeue", seconds=0.2)
    monkeypatch.setenv("PATH", "/nowhere")
    assert job_states(["1"])["1"] == JobState("unknown", "SLURM does not answer (squeue is not installed)")


def test_a_command_that_fails_is_tried_again(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "RETRY_SECONDS", 60.0)
    slurm.does("squeue", f'[ $(wc -l < "$0.asked") = 3 ] || {{ echo "{TIMED_OUT.strip()}" >&2; exit 1; }}')
    assert job_states(["1"])["1"] == JobState("over", NOT_LISTED)
    assert len(slurm.asked("squeue")) == 3


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (NO_DATABASE, "unknown", f"{NOT_LISTED}, and its accounting does not answer ({NO_DATABASE.splitlines()[-1]})"),
        (NO_ACCOUNTING, "over", NOT_LISTED),
        (NO_ACCOUNTING.upper(), "over", NOT_LISTED),
    ],
)
def test_accounts_that_fail_and_accounts_that_do_not_exist(
    slurm: FakeSlurm, error: str, state: str, reason: str
) -> None:
    slurm.answers("squeue", "1_0|RUNNING|0|n1|None|\n")
    slurm.answers("sacct", error=error, code=1)
    states = job_states(["1_0", "1_1"])
    assert states["1_0"].state == "running"
    assert (states["1_1"].state, states["1_1"].reason) == (state, reason)


def test_one_unknown_id_does_not_end_the_others(slurm: FakeSlurm) -> None:
    """All jobs are listed then, also those that semaim does not submit."""
    queue = "7+0|RUNNING|0|n1|None|\n2_0|RUNNING|0|n1|None|\n3|PENDING|0||Priority|\n"
    slurm.answers("squeue", queue)
    refuses = f'case "$*" in *--jobs=*) echo "{NO_SUCH_JOB.strip()}" >&2; exit 1;; esac; cat "$0.out"'
    slurm.does("squeue", refuses)
    states = job_states(["1_0", "2_0"])
    assert (states["1_0"].state, states["2_0"].state) == ("over", "running")


def test_settings_of_the_user_hide_no_job(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SLURM_BITSTR_LEN", "8")
    slurm.does("squeue", '[ -z "$SQUEUE_PARTITION" ] && [ "$SLURM_BITSTR_LEN" = 0 ] && echo "1|RUNNING|0|n1|None|"')
    assert job_states(["1"])["1"].state == "running"


@pytest.mark.parametrize(
    ("answer", "job"),
    [("JobId=16 JobName=next", "16"), ("JobId=17 ArrayJobId=12 ArrayTaskId=3 JobName=next", "12_3"), (None, "12_3")],
)
def test_a_job_that_a_task_of_an_array_has_submitted(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, answer: str | None, job: str
) -> None:
    """sbatch passes the variables of the array on to it. A job of a sweep needs no question."""
    slurm_job._is_array_task.cache_clear()
    for name, value in {"JOB_ID": 16, "ARRAY_JOB_ID": 12, "ARRAY_TASK_ID": 3}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    slurm.answers("scontrol", answer or "", code=0 if answer else 1)
    assert [slurm_job.this_job()["job"] for _ in range(2)] == [job] * 2
    assert slurm.asked("scontrol") == ["--oneliner show job 16"]
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    slurm_job._is_array_task.cache_clear()
    assert slurm_job.this_job()["job"] == "12_3"
    assert slurm.asked("scontrol") == []
    slurm_job._is_array_task.cache_clear()


def test_a_job_of_an_array_asks_for_itself(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last task of an array has the array's number as SLURM_JOB_ID, which would mean all its tasks."""
    for name, value in {"JOB_ID": 12, "ARRAY_JOB_ID": 12, "ARRAY_TASK_ID": 3, "RESTART_COUNT": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    slurm.answers("scontrol", "JobId=12 ArrayJobId=12 ArrayTaskId=3 JobState=COMPLETING Restarts=2\n")
    assert slurm_job.is_being_requeued()
    assert slurm.asked("scontrol") == ["--oneliner show job 12_3"]
    slurm.answers("scontrol", error="slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    assert not slurm_job.is_being_requeued()
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    slurm.asked("scontrol")
    slurm_job.is_being_requeued()
    assert slurm.asked("scontrol")[0] == "--oneliner show job 12"
