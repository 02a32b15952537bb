"""The exit of the program: exit functions run, output is complete, and the exit code is the right one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import PATIENCE

PROGRAM = """
import atexit, gc, sys, threading, time
from semaim.core import interpreter

class Witness:
    def __del__(self):
        print("freed")

def late():
    time.sleep(0.3)
    print("thread")

def main():
    atexit.register(print, "exit function")
    threading.Thread(target=late).start()
    global witness
    witness = Witness()
    assert gc.get_threshold() == (50_000, 20, 20)
    print("main", end=" ")
    {last}

interpreter.run_program(main)
"""


def run(last: str) -> subprocess.CompletedProcess[str]:
    code = PROGRAM.replace("{last}", last)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 130])
def test_threads_and_exit_functions_end_first_and_nothing_is_freed_one_by_one(code: int) -> None:
    done = run(f"return {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "main thread\nexit function\n", "")


@pytest.mark.parametrize(
    ("last", "code", "message"),
    [
        ("raise RuntimeError('broken')", 1, "RuntimeError: broken\n"),
        ("sys.exit(5)", 5, ""),
        ("interpreter.announce_exit(0); raise RuntimeError('after the announcement')", 1, "after the announcement\n"),
    ],
)
def test_an_exit_that_was_not_announced_is_pythons(last: str, code: int, message: str) -> None:
    done = run(last)
    assert done.returncode == code
    assert done.stderr.endswith(message)
    assert done.stdout == "main thread\nexit function\nfreed\n"


def test_a_reader_that_has_ended(tmp_path: Path) -> None:
    """The output is buffered until the exit, when nobody reads it any more."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.replace("{last}", "return 4"))
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {script} | true; echo ${{PIPESTATUS[0]}}"],
        env=os.environ | {"PYTHONUNBUFFERED": ""}, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("4\n", "")


CLOSED = """
import os, sys
from semaim.core import interpreter
from semaim.config.messages import reports_errors

@reports_errors
def main():
    with open(sys.argv[1], "w") as file:
        print("said")
        print("not said", file=sys.stderr)
        os.write(2, b"by a handler of a signal")
        file.write("content")

interpreter.run_program(main)
"""


def test_closed_streams(tmp_path: Path) -> None:
    """A file that the program opens must not take the number of one, into which others write."""
    command = f'{sys.executable} -c "$0" {tmp_path}/file <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", command, CLOSED], timeout=PATIENCE, check=False)
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "content")


def test_an_output_on_a_full_disk(tmp_path: Path) -> None:
    command = f'{sys.executable} -c "$0" {tmp_path}/file > /dev/full'
    done = subprocess.run(
        ["bash", "-c", command, CLOSED], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith("error: the output cannot be written (No space left on device): make room, then type "
                                "the same command again\n")  # fmt: skip
    assert "Traceback" not in done.stderr
