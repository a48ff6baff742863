"""`python -m defensekit`."""

from defensekit.cli import command

command()
