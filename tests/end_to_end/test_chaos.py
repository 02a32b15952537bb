"""A short chaos campaign, so that the long one (chaos.py, by hand) keeps working: one run on a node, one on two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import slurm
from support.commands import ENVIRONMENT

pytestmark = pytest.mark.slow
# Kinds of events that can take minutes.
SLOW = ("usr2_at_start", "node_down", "slurmd_stopped", "slurmd_killed", "slurmctld_restarted", "retry", "retry_twice",
        "cancel")  # fmt: skip
SHORT = ("--minutes", "0.4", "--seed", "7", "--points", "2", "--without", *SLOW)


@pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing()))
def test_a_short_campaign_finds_nothing_wrong() -> None:
    script = Path(__file__).parents[1] / "cluster" / "chaos.py"
    with subprocess.Popen(
        [sys.executable, script, *SHORT], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=600)
        except BaseException:
            process.terminate()  # it then stops its cluster
            process.communicate(timeout=120)
            raise
    assert process.returncode == 0, said
    assert "4 of 4: runs and evaluations are finished" in said
