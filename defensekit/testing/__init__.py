"""Checks for plugin authors, to be called from their tests."""

from defensekit.testing.gradients import check_squared_gradients

__all__ = ["check_squared_gradients"]
