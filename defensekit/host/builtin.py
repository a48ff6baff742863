"""The core's own components: where stages run, and data and models that lie in files or on a hub."""

from defensekit.host.hookspecs import Table, hookimpl


@hookimpl
def defensekit_executors() -> Table:
    return {"in-process": "defensekit.pipeline.executors:InProcess"}


@hookimpl
def defensekit_datasets() -> Table:
    return {"file": "defensekit.host.tables:File", "hub": "defensekit.host.tables:Hub"}


@hookimpl
def defensekit_models() -> Table:
    return {"folder": "defensekit.host.sources:FolderModel", "hub": "defensekit.host.sources:HubModel"}
