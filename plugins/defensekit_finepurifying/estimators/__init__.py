"""Curvature of the clean loss, one estimator a file."""
