"""Estimators for other defenses, one per file."""
