"""A process that holds run folders, as a live run does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CODE = """
import sys
from pathlib import Path
from semaim.runs.folder import RunFolder
folders = [RunFolder(Path(path)) for path in sys.argv[2:]]
for folder in folders:
    folder.lock()
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(*folders: Path, name: str = "run") -> Iterator[subprocess.Popen[str]]:
    """A process that locks folders until the end of the block, or of its standard input.

    Args:
        folders: run folders or folders of sweeps.
        name: a word of its command line; "submitit" makes it look like a job.
    """
    command = [sys.executable, "-c", CODE, name, *map(str, folders)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process  # leaving the block closes its standard input and waits for it
