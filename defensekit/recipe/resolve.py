"""From a name, a path or a mapping, in a recipe or in Python, to a component, a model or data."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from defensekit.components import Component, ModelSource, call_component
from defensekit.components.base import each_path
from defensekit.host.discovery import cached_plugins
from defensekit.host.parameters import build
from defensekit.host.registry import Host
from defensekit.host.sources import hub_parameters
from defensekit.host.tables import SUFFIXES
from defensekit.utils.errors import KeyedError, UsageError, listing, nearest
from defensekit.utils.files import environment_path, literal_path, nearest_path, there

C = TypeVar("C", bound=Component)
Spec = str | Mapping[str, Any]
# From a path as written, and its key, to the absolute path.
ResolvePath = Callable[[str, tuple[str | int, ...]], Path]


def here(text: str, key: tuple[str | int, ...]) -> Path:
    """A path relative to the working folder."""
    return environment_path(text)


def several(specs: Spec | C | Sequence[Spec | C]) -> Sequence[Spec | C]:
    """A list of components, from one or several."""
    return [specs] if isinstance(specs, str | Mapping | Component) else specs


def called(spec: Spec | Component) -> str:
    """The name of a component."""
    if isinstance(spec, Component):
        return type(spec).__name__
    return spec if isinstance(spec, str) else str(spec.get("name"))


def component(kind: type[C], spec: Spec | C) -> C:
    """A component from its name, a mapping with its name and parameters, or itself.

    Raises:
        UsageError: there is no such component, or a parameter is not what was expected.
    """
    if isinstance(spec, kind):
        return spec
    if isinstance(spec, Component):
        raise UsageError(f"expected a {kind.kind}, got the {spec.kind} {type(spec).__name__}")
    try:
        name, given = name_and_parameters(spec)
    except UsageError as error:
        raise UsageError(f"a {kind.kind}: {error} (or an object); got {spec!r}") from error
    selected = cached_plugins().find(kind, name)
    try:
        return build(selected, resolve_paths(selected, given, here))
    except KeyedError as error:
        raise error.below(kind.kind, name) from error


def name_and_parameters(spec: Spec, name_key: str = "name") -> tuple[str, dict[str, Any]]:
    """A name alone, or a mapping with a name and parameters, as both.

    Raises:
        UsageError: there is no name.
    """
    given: dict[str, Any] = {name_key: spec} if isinstance(spec, str) else dict(spec)
    if not isinstance(name := given.pop(name_key, None), str):
        raise UsageError(f"expected a name, or a mapping with `{name_key}:` and parameters")
    return name, given


def resolve_paths(kind: type[Component], given: dict[str, Any], resolve: ResolvePath) -> dict[str, Any]:
    """Parameters with every path among them resolved."""
    named = [key for key in kind.paths() if key in given]
    return given | {key: each_path(given[key], lambda path, at: str(resolve(path, at)), (key,)) for key in named}


def model_folder(model: Spec | Path) -> Path:
    """The folder of a model: itself, a source's, or a hub's at a revision.

    Raises:
        UsageError: it is none of these, or a source and a folder.
    """
    source = component(ModelSource, model_source(written(model)))
    return call_component(source, source.folder)


def model_source(spec: Spec, host: Host | None = None, resolve: ResolvePath = here) -> dict[str, Any]:
    """A model as its source with parameters. ``spec`` names a source, a folder or ``owner/name@revision``.

    Raises:
        UsageError: it is none of these, or a source and a folder.
    """
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    name, host = given.get("name"), host or cached_plugins()
    names = host.names("model")
    if not isinstance(name, str):
        return given
    if name in names:
        return _source(given, "model", host, resolve)
    path = there(name, resolve(name, ("name",)))
    if path.exists() or _is_path(name):
        return _instead(given, {"name": "folder", "path": literal_path(path)})
    if parameters := hub_parameters(name):
        return _at_revision(_instead(given, parameters), path)
    raise UsageError(
        f"{name!r} is no model source, no folder and no hub id with a revision (owner/name@revision)."
        f"{nearest(name, names) or nearest_path(path)} (known sources: {listing(names)})"
    )


def dataset_source(spec: Spec, host: Host | None = None, resolve: ResolvePath = here) -> dict[str, Any]:
    """Data as their source with parameters.

    ``spec`` names a source, a file or folder, or ``owner/name@revision``; anything else is returned as it is.

    Raises:
        UsageError: the revision is missing, a parameter is given twice, or it is a source and a path.
    """
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    name, host = given.get("name"), host or cached_plugins()
    if not isinstance(name, str):
        return given
    if name in host.names("dataset"):
        return _source(given, "dataset", host, resolve)
    path = resolve(name, ("name",))
    if path.exists() or path.suffix in SUFFIXES or _is_path(name):
        return _instead(given, {"name": "file", "path": literal_path(path)})
    if parameters := hub_parameters(name):
        return _at_revision(_instead(given, parameters), path)
    return given


def written(model: Spec | Path) -> Spec:
    """A path as a specification of what is there, and of no source of that name; anything else as it is."""
    if not isinstance(model, Path):
        return model
    return str(model) if _is_path(str(model)) else f"./{model}"


def _source(given: dict[str, Any], kind: str, host: Host, resolve: ResolvePath) -> dict[str, Any]:
    """A source with its parameters; its name alone is refused where something of that name is there as well."""
    name = given["name"]
    if len(given) == 1 and (path := resolve(name, ("name",))).exists():
        what = "folder" if path.is_dir() else "file"
        raise UsageError(
            f"{name!r} is ambiguous: a source of {host.plugin_of(kind, name)}, and the {what} {path}. Write ./{name} "
            f"for the {what}; the source is meant where no {what} there has its name"
        )
    return given


def _is_path(name: str) -> bool:
    """Whether a name can only be a path, even if it does not exist."""
    return name.startswith((".", "/", "~", "$"))


def _instead(given: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """A path or hub id as its source with parameters; none of these may be given twice."""
    for key in parameters:
        if key != "name" and key in given:
            raise KeyedError((key,), f"is already given by `name: {given['name']}`")
    return given | parameters


def _at_revision(given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Something on a hub; refused without a revision."""
    if "revision" not in given:
        name = given["id"]
        raise UsageError(f"{name!r} needs a revision: write {name}@main, or a tag or commit.{nearest_path(path)}")
    return given
