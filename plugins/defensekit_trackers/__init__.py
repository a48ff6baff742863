"""Who writes runs down elsewhere: an MLflow store."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_observers() -> dict[str, str]:
    return {"mlflow": "defensekit_trackers.mlflow:MLflow"}
