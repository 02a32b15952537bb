"""`python -m semaim <verb>`: the `semaim` program."""

from semaim.cli import program

program()
