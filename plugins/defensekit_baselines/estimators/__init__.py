"""Statistics that other defenses rest on, one estimator a file."""
