"""The command line: parse, call, print."""

from defensekit.cli.main import main

__all__ = ["main"]
