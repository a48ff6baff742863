"""The core's own components: executors, and data and models in files or on a hub."""

from defensekit.host.hookspecs import Table, hookimpl


@hookimpl
def defensekit_executors() -> Table:
    """The executors of the core, by name."""
    return {"auto": "defensekit.pipeline.executors:Auto", "in-process": "defensekit.pipeline.executors:InProcess"}


@hookimpl
def defensekit_datasets() -> Table:
    """The sources of data of the core, by name."""
    return {
        "file": "defensekit.host.table_sources:File",
        "hub": "defensekit.host.table_sources:Hub",
        "instructions": "defensekit.host.instructions:Instructions",
    }


@hookimpl
def defensekit_models() -> Table:
    """The sources of models of the core, by name."""
    return {"folder": "defensekit.host.sources:FolderModel", "hub": "defensekit.host.sources:HubModel"}
