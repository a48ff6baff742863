"""Values of a document, checked and built. Errors have file, line and key."""

import json
from collections.abc import Callable, Collection, Hashable
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from defensekit.components import Component, ModelSource
from defensekit.host.parameters import build
from defensekit.host.registry import Host
from defensekit.recipe.recipe import NamedComponent
from defensekit.recipe.resolve import ResolvePath, Spec, model_source, name_and_parameters, resolve_paths
from defensekit.recipe.trust import Trust
from defensekit.recipe.yaml_document import Document, Path_
from defensekit.utils.errors import KeyedError, PlacedError, UsageError
from defensekit.utils.files import environment_path, resolved

Model = TypeVar("Model", bound=BaseModel)
C = TypeVar("C", bound=Component)
Result = TypeVar("Result")


class Reader:
    """Reads a document by its keys, with the components of ``host``, and reports the location of errors."""

    def __init__(self, document: Document, known: dict[Hashable, Any], trust: Trust | None = None) -> None:
        self.document = document
        self.known = known
        self.trust = trust
        self.host = Host()

    def error(self, path: Path_, text: str) -> PlacedError:
        """An error with the location of a key."""
        return PlacedError(f"{self.document.describe_location(path)}: {text}")

    def at(self, path: Path_, call: Callable[[], Result]) -> Result:
        """Call; an error is reported with the location of a key, unless it has a more precise one."""
        try:
            return call()
        except PlacedError:
            raise
        except KeyedError as error:
            raise self.error((*path, *error.key), error.text) from error
        except UsageError as error:
            raise self.error(path, str(error)) from error
        except OSError as error:  # a name too long, a folder that may not be read
            raise self.error(path, f"{error.strerror or error}: {error.filename}") from error

    def keys(self, model: type[Model], data: Any, path: Path_, beside: Collection[str] = ()) -> Model:
        """Check plain data against a model."""
        return self.at(path, lambda: build(model, data, beside))

    def part(
        self, kind: type[C], spec: Spec, path: Path_, name_key: str = "name", beside: Collection[str] = ()
    ) -> NamedComponent[C]:
        """Build a component of a kind from its name, or from a mapping with its name and parameters.

        ``beside`` are keys of the mapping that were read before.
        """
        name, given = self.at(path, lambda: name_and_parameters(spec, name_key))
        component = self.at((*path, name_key), lambda: self.host.find(kind, name))
        given = self.at(path, lambda: resolve_paths(component, given, self.resolver(path)))
        if self.trust and (elsewhere := sorted(component.location - set(component.paths()))):
            self.trust.ask("@".join(str(given.get(key)) for key in elsewhere))
        wanted = (component, name, json.dumps(given))
        if wanted not in self.known:
            self.known[wanted] = NamedComponent(name, self.keys(component, given, path, beside))
        return cast(NamedComponent[C], self.known[wanted])

    def model(self, spec: Spec, path: Path_) -> NamedComponent[ModelSource]:
        """Build a model's source from its name, a folder, or owner/name@revision."""
        source = self.at(path, lambda: model_source(spec, self.host, self.resolver(path)))
        return self.part(ModelSource, source, path)

    def resolve(self, text: str, path: Path_) -> Path:
        """A path, relative to the file that has it, or to the working folder in a setting."""

        def absolute() -> Path:
            found = resolved(self.document.place(path).folder / environment_path(text))
            if self.trust:
                self.trust.ask_path(found)
            return found

        return self.at(path, absolute)

    def resolver(self, path: Path_) -> ResolvePath:
        """`resolve` for the keys below a key."""
        return lambda text, key: self.resolve(text, (*path, *key))
