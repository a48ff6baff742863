"""Observers that record runs elsewhere: in MLflow."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_observers() -> dict[str, str]:
    """The observers of this plugin, by name."""
    return {"mlflow": "defensekit_trackers.mlflow:MLflow"}
