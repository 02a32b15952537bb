"""SLURM's commands as shell scripts on PATH, whose jobs only wait: for tests of submission, without a cluster.

<folder>/jobs               a line for each job or array task: id and state
        /submitted/<n>.sh   the batch script of the n-th sbatch
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

SBATCH = r"""
n=$(ls {folder}/submitted | wc -l); n=$((n + 1))
[ ! -e {folder}/refuse ] || {{ echo "sbatch: error: $(cat {folder}/refuse)" >&2; exit 1; }}
for word; do script=$word; done
cp "$script" {folder}/submitted/$n.sh
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
for i in ${{last:+$(seq 0 "$last")}}; do echo "${{n}}_$i PENDING" >> {folder}/jobs; done
[ -n "$last" ] || echo "$n PENDING" >> {folder}/jobs
echo "Submitted batch job $n"
"""
SQUEUE = r"""
while read -r job state; do echo "$job|$state|0||Priority|"; done < {folder}/jobs
"""
SCONTROL = r"""
case "$*" in *ping*) echo up;; *config*) echo "MaxArraySize = {array_size}";; esac
"""


class FakeSlurm:
    """The state of the commands.

    Args:
        folder: for the commands and their state.
        patch: puts them on PATH.
        array_size: SLURM's MaxArraySize.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, array_size: int = 1001) -> None:
        self.folder = folder
        (folder / "submitted").mkdir(parents=True)
        (folder / "jobs").touch()
        programs = {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL, "sacct": "", "srun": "", "scancel": ""}
        for name, text in programs.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("#!/bin/bash\n" + text.format(folder=folder, array_size=array_size))
            path.chmod(0o755)
        patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")

    def scripts(self) -> list[str]:
        """The batch scripts, in the order of submission."""
        return [
            path.read_text() for path in sorted(self.folder.glob("submitted/*.sh"), key=lambda path: int(path.stem))
        ]

    def options(self, name: str) -> list[str | None]:
        """An option of sbatch in each script."""
        found = [re.search(rf"^#SBATCH --{name}=(.*)$", script, re.MULTILINE) for script in self.scripts()]
        return [each and each[1] for each in found]

    def set_state(self, job: str, state: str) -> None:
        """Change the state of a job or array task."""
        path = self.folder / "jobs"
        path.write_text(re.sub(rf"^{job} .*$", f"{job} {state}", path.read_text(), flags=re.MULTILINE))
