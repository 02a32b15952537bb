"""Pages of the documentation that tests follow: their code blocks become files, their commands are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support.paths import ROOT


class Page:
    """A page of docs/.

    Args:
        name: of the file, without its suffix.

    Attributes:
        text: its Markdown.
        files: content by name, of the code blocks below a line with only a file name.
        commands: its blocks of shell commands.
    """

    def __init__(self, name: str) -> None:
        self.text = (ROOT / "docs" / f"{name}.md").read_text()
        self.files = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)```", self.text, re.MULTILINE | re.DOTALL))
        self.commands = re.findall(r"```sh\n(.*?)```", self.text, re.DOTALL)

    def write(self, folder: Path, *names: str) -> None:
        """Write files of the page below a folder."""
        for name in names or self.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(self.files[name])


def run_as_typed(command: str, folder: Path, *more: str, **environment: str) -> str:
    """Run a command of a page in a folder, with more options; returns what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` is the interpreter of the tests
    done = subprocess.run(
        " ".join(["set -e;", command.strip(), *more]),
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
