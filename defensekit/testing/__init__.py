"""Checks for plugin authors to call in their tests: `check_plugin`, `conformance`, and helpers."""

from defensekit.testing.conformance import check_plugin, conformance
from defensekit.testing.gradients import check_squared_gradients, fisher_by_loop
from defensekit.testing.report import Outcome, Report

__all__ = ["Outcome", "Report", "check_plugin", "check_squared_gradients", "conformance", "fisher_by_loop"]
