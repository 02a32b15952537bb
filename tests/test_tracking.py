"""What MLflow shows of a run is what its folder holds: everything, once, and with the right status.

Real runs against real MLflow stores (SQLite files), looked at with MLflow's own client: finished, failed, killed,
stopped and continued runs, deliveries repeated or interrupted, MLflow absent, four runs at once.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from commands import ENVIRONMENT, SMALL, journal, run, started, status, wait_for
from semaim import sync
from semaim.journal import Journal
from semaim.runfolder import RunFolder, flatten
from semaim.tracking import Delivery, parameters
from test_command_line import run_here

TINY = tuple(option for option in SMALL if option != "tracking=none")
SYNC = (ENVIRONMENT["PYTHON"] if "PYTHON" in ENVIRONMENT else "", "-m", "semaim.sync")
