"""Curvature of the clean loss, one estimator per file."""
