"""What a caller may write for a component or a model: a name, a mapping, an object, a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from defensekit.components import Component, ModelSource, blame
from defensekit.host.discovery import load_plugins
from defensekit.host.sources import hub_parameters
from defensekit.recipe.loader import explain
from defensekit.utils.errors import UsageError, nearest
from defensekit.utils.files import environment_path, nearest_path

Part = TypeVar("Part", bound=Component)
Spec = str | Mapping[str, Any]


def several(specs: Spec | Part | Sequence[Spec | Part]) -> Sequence[Spec | Part]:
    """One component, or several, as several."""
    return [specs] if isinstance(specs, str | Mapping | Component) else specs


def called(spec: Spec | Component) -> str:
    """The name of a component."""
    if isinstance(spec, Component):
        return type(spec).__name__
    return spec if isinstance(spec, str) else str(spec.get("name"))


def component(kind: type[Part], spec: Spec | Part) -> Part:
    """A component from its name, a mapping with its name and parameters, or itself.

    Raises:
        UsageError: there is no such component, or a parameter is not what was expected.
    """
    if isinstance(spec, kind):
        return spec
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in given:
        raise UsageError(
            f"a {kind.kind}: expected a name, a mapping with `name` and parameters, or an object; got {spec!r}"
        )
    name = str(given.pop("name"))
    found = load_plugins().find(kind.kind, name)
    try:
        made = found.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (kind.kind, name, *first["loc"])))
        raise UsageError(f"{place}: {explain(first, found)}") from error
    assert isinstance(made, kind)
    return made


def model_folder(model: Spec | Path) -> Path:
    """The folder of a model: itself, a source's, or a hub's at a revision.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(model, Mapping):
        source = component(ModelSource, model)
        return blame(source, source.folder)
    names, text = load_plugins().names("model"), str(model)
    if text in names:
        return model_folder({"name": text})
    if (path := environment_path(text)).is_dir():
        return path
    if (found := hub_parameters(text)) and "revision" in found:
        return model_folder(found)
    close = nearest(text, names) or nearest_path(path)
    raise UsageError(
        f"{text!r} is no folder, no model source and no owner/name@revision (a revision is @main, for example).{close}"
    )
