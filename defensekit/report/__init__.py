"""The report of a run: one HTML page made from its result and nothing else."""

from defensekit.report.page import render, write

__all__ = ["render", "write"]
