"""Stages planned, cached and executed: from a recipe to a result."""
