"""`python -m semaim <verb>`: the `semaim` program."""

import sys

from semaim.cli import main

sys.exit(main())
