"""One hook per kind of component. Hooks only register; the pipeline calls components as ordinary Python.

Every hook returns a table from names, as they are written in YAML, to components: as a lazy import path
(``"package.module:Class"``), so that listing plugins imports none of their dependencies, or as the class itself.
"""

from collections.abc import Callable, Mapping

import pluggy

from defensekit.components import KINDS, Component

PROJECT = "defensekit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Table = Mapping[str, "str | type[Component]"]


# Renamed hooks, which still work: the kind of each, and the warning for plugins that use it, shown with file and line:
# {"defensekit_judges": ("scorer", DeprecationWarning("... is going away in 0.3, use defensekit_scorers"))}
RENAMED: dict[str, tuple[str, DeprecationWarning]] = {}


def hook_of(kind: str) -> str:
    """The hook that registers the components of a kind."""
    return f"{PROJECT}_{kind}s"


def kind_of_hook() -> dict[str, str]:
    """The kind that each hook registers."""
    return {hook_of(kind): kind for kind in KINDS} | {hook: kind for hook, (kind, _) in RENAMED.items()}


def specifications() -> type:
    """A class with the specification of every hook, for pluggy."""
    current = {hook_of(kind): _specification(kind) for kind in KINDS}
    renamed = {hook: _specification(kind, warning) for hook, (kind, warning) in RENAMED.items()}
    return type("Specifications", (), current | renamed)


def _specification(kind: str, warning: DeprecationWarning | None = None) -> Callable[[], Table]:
    def table() -> Table:  # type: ignore[empty-body]
        ...

    does = (KINDS[kind].__doc__ or "").partition("\n")[0]
    table.__doc__ = f"Every {kind} of a plugin, by name. {does}"
    return hookspec(table, warn_on_impl=warning)
