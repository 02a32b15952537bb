"""Names of files in messages can neither forge a line nor control the terminal."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.config.messages import one_line, print_error
from semaim.core import terminal
from semaim.core.formatting import printable
from semaim.core.tables import markdown_table, text_table
from semaim.errors import UserError
from support.in_process import logging_left_as_found, run_here
from support.tracked import TINY

NAME = os.fsdecode(b"a\nerror: forged\r\x1b[2J\xff") + "\u202e\x85\u2028"
WRITTEN = r"a\nerror: forged\r\x1b[2J\udcff\u202e\x85\u2028"


def test_printable() -> None:
    assert printable(NAME) == WRITTEN
    assert printable("± 50 % ünïcode 漢字 🙂") == "± 50 % ünïcode 漢字 🙂"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert printable("http://ada:pass@host and a@b:c") == "http://***@host and a@b:c"
    assert printable("mysql://db/x?a=1&sslPassword=s3c&b=2' c") == "mysql://db/x?a=1&sslPassword=***&b=2' c"


def test_log_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.FileHandler(tmp_path / "run.log", encoding="utf-8")
    handler.setFormatter(terminal.LineFormatter("%(message)s"))
    with logging_left_as_found():
        terminal.show_logs(to_screen=True)
        log = logging.getLogger("semaim")
        log.addHandler(handler)
        log.warning("cannot read %s", NAME)
        log.info("table:\n%s", text_table([["run"], [NAME]]), extra=terminal.LINES)
        try:
            raise OSError(NAME)
        except OSError:
            log.exception("failed")
        handler.close()
    err = capfd.readouterr().err
    for lines in (
        [line[9:] for line in err.splitlines() if line[2:3] == ":"],
        (tmp_path / "run.log").read_text("utf-8"),
    ):
        assert f"cannot read {WRITTEN}" in lines
    assert [line for line in (err + (tmp_path / "run.log").read_text()).splitlines() if line.startswith("error")] == []
    assert (tmp_path / "run.log").read_text().splitlines()[1:3] == ["table:", "run"]
    assert f"\n{WRITTEN}\n" in (tmp_path / "run.log").read_text()
    assert "\x1b[2J" not in err
    assert "  Traceback" in (tmp_path / "run.log").read_text()


def test_error_messages(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_error(UserError(f"there is no file {NAME}: give another")) == 2
    assert print_error(UserError("differences:\n  a: 1 -> 2\nGo back")) == 2
    assert print_error(ZeroDivisionError(NAME)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: there is no file a"
    assert lines[1].startswith("  error: forged")
    assert "error: differences:" in lines
    assert lines[lines.index("error: differences:") + 1 :][:2] == ["  a: 1 -> 2", "  Go back"]
    assert not any("\x1b" in line for line in lines)
    assert "\n" not in one_line(UserError(NAME))


def test_tables() -> None:
    assert text_table([["run", "state"], [NAME, "x"]]).splitlines()[1] == f"{WRITTEN}  x"
    assert markdown_table([["run"], [NAME]]).splitlines()[2] == f"| {WRITTEN} |"


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_run_in_a_folder_with_such_a_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / os.fsdecode(b"a\nerror: forged\x1b[2J\xff")
    place.mkdir()
    assert run_here(place, *TINY, "tracking=none", "trainer.max_steps=2", "run_name=run") == 0
    out, err = capfd.readouterr()
    log = (place / "runs" / "run" / "run.log").read_text(encoding="utf-8")
    assert "step 2/2" in log
    assert main(["status", str(place / "runs" / "run")]) == 0
    assert main(["ls", str(place / "runs")]) == 0
    shown = out + err + log + "".join(capfd.readouterr())
    assert "\x1b[2J" not in shown
    assert [line for line in shown.splitlines() if line.startswith("error: forged")] == []
