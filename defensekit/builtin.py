"""The core's own components: where stages run, and data and models that lie in files or on a hub."""

from defensekit.hookspecs import Table, hookimpl


@hookimpl
def defensekit_executors() -> Table:
    return {"in-process": "defensekit.executors:InProcess"}


@hookimpl
def defensekit_datasets() -> Table:
    return {"file": "defensekit.tables:File", "hub": "defensekit.tables:Hub"}


@hookimpl
def defensekit_models() -> Table:
    return {"folder": "defensekit.sources:FolderModel", "hub": "defensekit.sources:HubModel"}
