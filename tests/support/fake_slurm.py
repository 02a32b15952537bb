"""Commands in place of SLURM's, which print what a test says, fail or hang; they remember what they were asked."""

from __future__ import annotations

import os
from pathlib import Path


class FakeSlurm:
    """A folder for PATH; a command that was not written is not installed, unless the rest of PATH has it.

    Args:
        folder: the folder to make.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    @property
    def path(self) -> str:
        """Value of PATH."""
        return f"{self.folder}:{os.environ['PATH']}"

    def answers(self, command: str, output: str = "", error: str = "", code: int = 0) -> None:
        """What a command says from now on."""
        (self.folder / f"{command}.out").write_text(output)
        (self.folder / f"{command}.err").write_text(error)
        self.does(command, f'cat "$0.out"; cat "$0.err" >&2; exit {code}')

    def does(self, command: str, script: str) -> None:
        """The shell script that a command is from now on."""
        file = self.folder / command
        file.write_text(f'#!/bin/sh\necho "$*" >> "$0.asked"\n{script}\n')
        file.chmod(0o755)

    def asked(self, command: str) -> list[str]:
        """The arguments of all calls of a command, which are forgotten then."""
        file = self.folder / f"{command}.asked"
        lines = file.read_text().splitlines() if file.is_file() else []
        file.unlink(missing_ok=True)
        return lines
