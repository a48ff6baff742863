"""Where stages run: in worker processes of this machine, or on a Ray cluster."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_executors() -> dict[str, str]:
    """The executors of this plugin, by name."""
    return {"local": "defensekit_executors.local:Local", "ray": "defensekit_executors.ray:Ray"}
