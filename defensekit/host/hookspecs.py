"""One hook per kind of component. Hooks only register; the pipeline calls components as ordinary Python.

Every hook returns a table from names, as they are written in YAML, to components: as a lazy import path
(``"package.module:Class"``), so that listing plugins imports none of their dependencies, or as the class itself.
"""

from collections.abc import Mapping

import pluggy

from defensekit.components.base import Component

PROJECT = "defensekit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Table = Mapping[str, "str | type[Component]"]


@hookspec
def defensekit_attacks() -> Table:  # type: ignore[empty-body]
    """Attacks by name."""


@hookspec
def defensekit_estimators() -> Table:  # type: ignore[empty-body]
    """Estimators by name."""


@hookspec
def defensekit_scorers() -> Table:  # type: ignore[empty-body]
    """Scorers by name."""


@hookspec
def defensekit_selectors() -> Table:  # type: ignore[empty-body]
    """Selectors by name."""


@hookspec
def defensekit_purifiers() -> Table:  # type: ignore[empty-body]
    """Steps of a purifier chain by name."""


@hookspec
def defensekit_sanitizers() -> Table:  # type: ignore[empty-body]
    """Input-level defenses by name."""


@hookspec
def defensekit_rules() -> Table:  # type: ignore[empty-body]
    """Rules by name."""


@hookspec
def defensekit_datasets() -> Table:  # type: ignore[empty-body]
    """Data sets by name."""


@hookspec
def defensekit_models() -> Table:  # type: ignore[empty-body]
    """Pretrained models by name."""


@hookspec
def defensekit_metrics() -> Table:  # type: ignore[empty-body]
    """Metrics by name."""


@hookspec
def defensekit_executors() -> Table:  # type: ignore[empty-body]
    """Executors by name."""


@hookspec
def defensekit_observers() -> Table:  # type: ignore[empty-body]
    """Observers by name."""


HOOKS = {
    "attack": "defensekit_attacks",
    "estimator": "defensekit_estimators",
    "scorer": "defensekit_scorers",
    "selector": "defensekit_selectors",
    "purifier": "defensekit_purifiers",
    "sanitizer": "defensekit_sanitizers",
    "rule": "defensekit_rules",
    "dataset": "defensekit_datasets",
    "model": "defensekit_models",
    "metric": "defensekit_metrics",
    "executor": "defensekit_executors",
    "observer": "defensekit_observers",
}

# The kind that each hook registers. A hook that is given up for another stays here, and its specification says
# `@hookspec(warn_on_impl=DeprecationWarning("... is going away in 0.3, use ..."))`: whoever still has it is told, with
# file and line, and works on.
KIND_OF = {hook: kind for kind, hook in HOOKS.items()}
