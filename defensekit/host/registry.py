"""The plugin host: registered components by kind and name, and problems with plugins."""

import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

import pluggy

from defensekit.components import KINDS, Component
from defensekit.components.base import ORIGINS, Origin, paths_in
from defensekit.host.hookspecs import PROJECT, hook_of, kind_of_hook, specifications
from defensekit.utils.errors import UsageError, choices, nearest
from defensekit.utils.files import data_digest, file_digest, folder_digest

C = TypeVar("C", bound=Component)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Plugin:
    """Where components come from: an installed distribution or a local file."""

    name: str
    version: str
    origin: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.origin} {self.version})".replace(" )", ")")


@dataclass(frozen=True)
class Problem:
    """A problem with a plugin, and what is left out because of it: the plugin, a hook, a component, or nothing."""

    plugin: Plugin
    text: str
    left_out: str = "the plugin"

    def __str__(self) -> str:
        end = f"; {self.left_out} is left out" if self.left_out else ""
        return f"{self.plugin}: {self.text}{end}{self._fix()}"

    def _fix(self) -> str:
        if "pip install" in self.text or not self.left_out:
            return ""
        if not self.plugin.version:
            return ", until the file is fixed"
        return f" (an update may fix it: pip install --upgrade {self.plugin.origin})"


@dataclass(frozen=True)
class Registration:
    """A component under its name."""

    kind: str
    name: str
    target: "str | type[Component]"
    plugin: Plugin


def _why(error: BaseException, plugin: Plugin) -> str:
    """One line for the error that stopped a plugin, with the command that fixes it where there is one."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        from defensekit.host.requirements import unmet  # a module's name need not be that of its package

        needed = " ".join(f"'{requirement}'" for requirement in unmet(plugin.origin)) or error.name.split(".")[0]
        return f"it needs the module {error.name!r}, which is not installed (pip install {needed})"
    return f"{type(error).__name__}: {error}".split("\n")[0]


@dataclass
class Host:
    """The available components, by kind and name, and the plugins that could not be loaded."""

    registrations: dict[str, dict[str, list[Registration]]] = field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )
    problems: list[Problem] = field(default_factory=list)

    # -- loading ---------------------------------------------------------------------------------------------------

    def load(self, plugin: Plugin, importer: Callable[[], ModuleType]) -> None:
        """Load one plugin; an error becomes a `Problem` and does not affect other plugins."""
        try:
            with redirect_stdout(sys.stderr):  # standard output is for results
                module = importer()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.problems.append(Problem(plugin, f"importing it failed, {_why(error, plugin)}"))
            return
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(specifications())
        try:
            with warnings.catch_warnings(record=True) as recorded:
                warnings.simplefilter("always")
                manager.register(module, plugin.name)
        except pluggy.PluginValidationError as error:
            self.problems.append(Problem(plugin, " ".join(str(error).split())))
            return
        self.problems += [Problem(plugin, f"{one.filename}:{one.lineno}: {one.message}", "") for one in recorded]
        hooks, kinds = 0, kind_of_hook()
        for caller in manager.get_hookcallers(module) or []:
            if not caller.has_spec():
                hint = nearest(caller.name, map(hook_of, KINDS))
                self.problems.append(Problem(plugin, f"there is no hook {caller.name!r}.{hint}"))
                return
            kind = kinds[caller.name]
            for implementation in caller.get_hookimpls():
                hooks += 1
                self._register(plugin, kind, caller.name, implementation.function)
        if not hooks:
            self.problems.append(Problem(plugin, "it has no function marked with @hookimpl"))

    def _register(self, plugin: Plugin, kind: str, hook: str, call: Callable[[], object]) -> None:
        def problem(text: str, what: str) -> None:
            self.problems.append(Problem(plugin, text, what))

        try:
            with redirect_stdout(sys.stderr):
                table = call()
        except (Exception, SystemExit) as error:
            problem(f"its hook {hook!r} failed, {_why(error, plugin)}", "what the hook registers")
            return
        if not isinstance(table, Mapping):
            expected = "a mapping of names to 'module:Class' or classes"
            problem(f"its hook {hook!r} returned {table!r}, expected {expected}", "what the hook registers")
            return
        for name, target in table.items():
            good = (isinstance(target, str) and ":" in target) or (
                isinstance(target, type) and issubclass(target, KINDS[kind])
            )
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                expected = "letters, digits and . _ -, a letter or digit first"
                problem(f"{hook!r}: its {kind} {name!r} has an invalid name, expected {expected}", "it")
                continue
            if not good:
                expected = f"'module:Class' or a subclass of {KINDS[kind].__name__}"
                problem(f"{hook!r}: its {kind} {name!r} is {target!r}, expected {expected}", "it")
                continue
            self.registrations[kind].setdefault(name, []).append(Registration(kind, name, target, plugin))

    # -- looking up ------------------------------------------------------------------------------------------------

    def claims(self) -> list[Registration]:
        """Everything that was registered, by kind."""
        return [claim for names in self.registrations.values() for claims in names.values() for claim in claims]

    def names(self, kind: str) -> list[str]:
        """The names of a kind, sorted."""
        return sorted(self.registrations[kind])

    @overload
    def find(self, kind: type[C], name: str) -> type[C]: ...

    @overload
    def find(self, kind: str, name: str) -> type[Component]: ...

    def find(self, kind: str | type[Component], name: str) -> type[Component]:
        """The class of a component by its kind (the class or its name) and its name.

        Raises:
            UsageError: no plugin or more than one has the name, or what it needs is not installed.
        """
        kind = kind if isinstance(kind, str) else kind.kind
        claims = self.registrations[kind].get(name, [])
        if not claims:
            known = self.names(kind)
            broken = "".join(f" ({problem})" for problem in self.problems)
            instead = choices(name, known, "defensekit plugins list") if known else " (none is installed)"
            raise UsageError(f"there is no {kind} {name!r}.{instead}{broken}")
        if len(claims) > 1:
            both = " and ".join(str(claim.plugin) for claim in claims)
            fix = "uninstall one of them, or name those to load in DEFENSEKIT_PLUGINS"
            raise UsageError(f"the {kind} {name!r} is claimed by {both}; {fix}")
        return resolve(claims[0])

    def plugin_of(self, kind: str, name: str) -> Plugin:
        """The plugin of a component that `find` knows."""
        return self.registrations[kind][name][0].plugin


def resolve(claim: Registration) -> type[Component]:
    """Import what was registered.

    Raises:
        UsageError: it can't be imported, or is not a component of the kind.
    """
    component = claim.target if isinstance(claim.target, type) else _imported(claim, claim.target)
    if not (isinstance(component, type) and issubclass(component, KINDS[claim.kind])):
        expected = f"a subclass of {KINDS[claim.kind].__name__}"
        raise UsageError(f"the {claim.kind} {claim.name!r} of {claim.plugin} is {component!r}, expected {expected}")
    check = claim.name if claim.plugin.version else str(Path(claim.plugin.origin) / claim.plugin.name)
    ORIGINS[component] = Origin(str(claim.plugin), hook_of(claim.kind), check)
    return component


def _imported(claim: Registration, target: str) -> object:
    module, _, attribute = target.partition(":")
    try:
        with redirect_stdout(sys.stderr):
            return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        why = _why(error, claim.plugin)
        raise UsageError(f"the {claim.kind} {claim.name!r} of {claim.plugin} can't be loaded: {why}") from error


@cache
def _package_digest(folder: Path) -> str:
    return folder_digest(folder, ("*.py",))


def source_digest(component: type[Component]) -> str:
    """A digest of the package of a component's class; of the file, for a single module or a component of the core.

    The core's components share a package with unrelated code, which must not change their digest.
    """
    module = sys.modules[component.__module__]
    package = component.__module__.partition(".")[0]
    for folder in getattr(sys.modules.get(package), "__path__", ()) if package != "defensekit" else ():
        return _package_digest(Path(folder))
    if file := getattr(module, "__file__", None):
        return file_digest(Path(file))
    return data_digest(component.__qualname__)  # defined interactively: there is no file


def registration_of(host: Host, component: type[Component]) -> Registration | None:
    """The registration of a component's class; None where no plugin registered it."""
    path = f"{component.__module__}:{component.__qualname__}"
    return next((claim for claim in host.claims() if claim.target in (component, path)), None)


def require(host: Host, names: Iterable[str]) -> None:
    """Check that plugins that the user named were loaded.

    Raises:
        UsageError: one of them is left out because of a problem.
    """
    wanted = set(names)
    for problem in host.problems:
        if problem.plugin.name in wanted and problem.left_out:
            raise UsageError(str(problem))


def plain(component: Component, name: str) -> dict[str, Any]:
    """A component as plain data, from which it can be rebuilt and a change of its code detected."""
    parameters = component.parameters()
    # Where something is decides no number: what is there does.
    location = component.location | (frozenset() if component.kind in _WATCHERS else frozenset(component.paths()))
    whole = {
        "kind": component.kind,
        "name": name,
        "location": {key: parameters.pop(key) for key in sorted(location)},
        "parameters": parameters,
        "source": source_digest(type(component)),
    }
    return whole | ({"contents": read} if (read := _contents_read(component)) else {})


_WATCHERS = ("executor", "observer")  # numbers don't depend on them, and they may write to their paths
_SOURCES = ("dataset", "model")  # they always give a digest of what they read
_ASKED = ("attack", "purifier")  # for a digest of what is at a ``location`` of theirs


def _contents_read(component: Component) -> dict[str, Any]:
    """Digests of what a component's paths name, by parameter; of a ``location`` some kinds give one by `contents`.

    Raises:
        UsageError: there is nothing at a path.
    """
    if component.kind in (*_WATCHERS, *_SOURCES):
        return {}
    read = {}
    own = component.location if component.kind in _ASKED else frozenset()
    for key in sorted(set(component.paths()) - own):
        value = getattr(component, key)
        for path in (paths := paths_in(value)):
            if not path.exists():
                raise UsageError(f"the {component.kind}'s {key}: there is no file or folder {path}")
        if paths:
            read[key] = _digested([value] if isinstance(value, Path) else value)
    return read


def _digested(value: Any) -> Any:
    """A parameter's value with a digest of what is there in place of every path."""
    if isinstance(value, dict):
        return {key: _digested(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_digested, value), key=str)
    if isinstance(value, list | tuple):
        return [*map(_digested, value)]
    if isinstance(value, Path):
        return folder_digest(value) if value.is_dir() else file_digest(value)
    return value
