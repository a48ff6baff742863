"""A scorer and a purifier's step for DefenseKit. To list them imports nothing heavy: hooks return paths to classes."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_scorers():
    return {"relative": "defensekit_relative.relative:Relative"}


@hookimpl
def defensekit_purifiers():
    return {"clip": "defensekit_relative.steps:Clip"}
