"""The base class of components: a frozen pydantic model whose fields are its YAML parameters."""

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

from defensekit.text import ROWS_OF, Row, TaskKind
from defensekit.utils.errors import DefenseKitError, UsageError, lacks_memory, listing

Result = TypeVar("Result")


def _names_a_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_names_a_path, get_args(annotation)))


def each_path(value: Any, change: Callable[[str, tuple[str | int, ...]], str], key: tuple[str | int, ...] = ()) -> Any:
    """A parameter as plain data with every path in it changed, by its key: itself, or those in a list or a mapping."""
    if isinstance(value, dict):
        return {name: each_path(one, change, (*key, name)) for name, one in value.items()}
    if isinstance(value, list):
        return [each_path(one, change, (*key, i)) for i, one in enumerate(value)]
    return change(value, key) if isinstance(value, str) else value


def paths_in(value: Any) -> list[Path]:
    """The paths that a parameter's value has."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return [path for one in value for path in paths_in(one)]
    return [value] if isinstance(value, Path) else []


class Component(BaseModel):
    """A named part of a run.

    Fields are the YAML parameters: typed, bounded, documented; unknown ones are refused. A component never holds a
    tensor, so it can be hashed, pickled and described as a JSON schema.

    Attributes:
        kind: the kind of component, such as ``scorer``.
        location: parameters that say where something is and not what it is; results do not depend on them. What is
            there an attack, a purifier or a source has to digest, by ``contents``. Of the paths of other kinds, and of
            parameters that are no location, the engine does it.
        tasks: the kinds of task that it works for. What is shown rows with lists of labels, and means to work for them,
            has to name ``multi-label``.
        lower_does_more: parameters, such as thresholds, whose lower values make the defense stronger; a rule chooses
            the lowest acceptable value of these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: ClassVar[str]
    location: ClassVar[frozenset[str]] = frozenset()
    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "generation"})
    lower_does_more: ClassVar[frozenset[str]] = frozenset()

    def __hash__(self) -> int:
        return hash((type(self), self.model_dump_json()))  # a parameter may be a list or a mapping

    @classmethod
    def works_for(cls, task: TaskKind) -> bool:
        """Whether it works for a kind of task."""
        return task in cls.tasks

    # Whether it looks at what a defender can't see; every table prints that word beside its numbers.
    oracle: ClassVar[bool] = False

    @classmethod
    def paths(cls) -> list[str]:
        """The names of the parameters that are paths; in a recipe they are relative to the recipe's folder."""
        return [name for name, field in cls.model_fields.items() if _names_a_path(field.annotation)]

    def parameters(self) -> dict[str, Any]:
        """The parameters as plain data, with defaults.

        Returns:
            JSON values by the parameters' names.

        Raises:
            UsageError: a parameter can't be written as JSON.
        """
        try:
            return self.model_dump(mode="json")
        except PydanticSerializationError as error:
            raise UsageError(
                f"the {self.kind} {type(self).__name__} has a parameter that can't be written as JSON ({error})"
            ) from error


@dataclass(frozen=True)
class Origin:
    """Where a component's class came from: its plugin, its hook, and the argument for `plugins check`."""

    plugin: str
    hook: str
    check: str


ORIGINS: "WeakKeyDictionary[type[Component], Origin]" = WeakKeyDictionary()  # filled by the host


def refuse_unsuited(component: Component, rows: Sequence[Row]) -> None:
    """Refuse a component that is not for lists of labels, where rows have them.

    Raises:
        UsageError: it does not work for the rows.
    """
    if rows and (task := rows[0].task) == "multi-label" and not component.works_for(task):
        name = f"the {component.kind} {type(component).__name__}"
        raise UsageError(f"{name} does not work for {ROWS_OF[task]}; expected rows with one label each")


def component_error(component: Component, text: str) -> DefenseKitError:
    """An error that names the component, its plugin and hook, and the command that checks it."""
    who = f"the {component.kind} {type(component).__name__}"
    if origin := ORIGINS.get(type(component)):
        hint = f"`defensekit plugins check {origin.check}` tries it by itself"
        return DefenseKitError(f"{origin.plugin}: {who} {text} (registered by {origin.hook}; {hint})")
    return DefenseKitError(f"{who} of {type(component).__module__} {text}")


def offering(
    component: Component, load: Callable[[Any], Result], *words: str, folders: bool = False
) -> Callable[[Any], Result]:
    """What a context gives a component as its ``model``: it loads what there is, and refuses all else by name.

    Args:
        component: who asks.
        load: loads a model by a word or a folder.
        *words: the models that there are.
        folders: whether other models may be loaded from their folders, as a `Path`.

    Returns:
        The function; it raises a DefenseKitError that names the component.
    """

    def model(which: Any) -> Result:
        if not (which in words if isinstance(which, str) else folders and isinstance(which, Path)):
            expected = listing(map(repr, words)) + (", or a folder as a Path" if folders else "")
            raise component_error(component, f"asks for the model {listing([repr(which)])}; expected {expected}")
        return load(which)

    return model


def call_component(component: Component, call: Callable[..., Result], *arguments: Any) -> Result:
    """Call a component and turn its exceptions into messages that name it.

    Args:
        component: the component.
        call: its method.
        *arguments: the method's arguments.

    Returns:
        The method's result.

    Raises:
        DefenseKitError: the method raised. A DefenseKitError, an OSError and a lack of memory are raised unchanged.
    """
    process = os.getpid()
    try:
        return call(*arguments)
    except (DefenseKitError, OSError):
        raise
    except (Exception, SystemExit) as error:
        if lacks_memory(error):
            raise
        raise component_error(component, f"failed: {printable_name(error, component)}") from error
    finally:
        if os.getpid() != process:
            os._exit(1)  # the component forked and the child returned: it must not continue the run


def printable_name(error: BaseException, component: Component) -> str:
    """An exception in one line, with the file and line in the component's own module."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__") == type(component).__module__:
            return f"{text} ({Path(frame.f_code.co_filename).name}:{line})"
    return text
