"""Commands in place of SLURM's, which print what a test says, fail or hang; they remember what they were asked."""

from __future__ import annotations

import os
import re
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


SBATCH = r"""
n=$(($(ls "$0.scripts" | wc -l) + 1))
for word; do script=$word; done
cp "$script" "$0.scripts/$n.sh"
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
for i in ${last:+$(seq 0 "$last")}; do echo "${n}_$i PENDING" >> "$0.jobs"; done
[ -n "$last" ] || echo "$n PENDING" >> "$0.jobs"
echo "Submitted batch job $n"
"""
SQUEUE = r"""
while read -r job state; do echo "$job|$state|0||Priority|"; done < "${0%squeue}sbatch.jobs"
"""


class FakeQueue(FakeSlurm):
    """A queue whose jobs only wait, for tests of submission.

    Args:
        folder: the folder to make.
        array_size: SLURM's MaxArraySize.
    """

    def __init__(self, folder: Path, array_size: int) -> None:
        super().__init__(folder)
        (folder / "sbatch.scripts").mkdir()
        self.jobs = folder / "sbatch.jobs"
        self.jobs.touch()
        self.does("sbatch", SBATCH)
        self.does("squeue", SQUEUE)
        self.does("scontrol", f'case "$*" in *config*) echo "MaxArraySize = {array_size}";; *) echo up;; esac')
        for command in ("sacct", "srun", "scancel"):
            self.answers(command)

    def scripts(self) -> list[str]:
        """The batch scripts, in the order of submission."""
        paths = (self.folder / "sbatch.scripts").glob("*.sh")
        return [path.read_text() for path in sorted(paths, key=lambda path: int(path.stem))]

    def options(self, name: str) -> list[str | None]:
        """An option of sbatch in each script."""
        found = [re.search(rf"^#SBATCH --{name}=(.*)$", script, re.MULTILINE) for script in self.scripts()]
        return [each and each[1] for each in found]

    def set_state(self, job: str, state: str) -> None:
        """Change the state of a job or array task."""
        text = re.sub(rf"^{job} .*$", f"{job} {state}", self.jobs.read_text(), flags=re.MULTILINE)
        self.jobs.write_text(text)
