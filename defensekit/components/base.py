"""What every component is: a frozen pydantic model whose fields are its YAML parameters."""

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

from defensekit.utils.errors import DefenseKitError, UsageError, lacks_memory

Result = TypeVar("Result")


class Component(BaseModel):
    """A named part of a run.

    Fields are the YAML parameters: typed, bounded, documented; unknown ones are refused. A component never holds a
    tensor, so it can be hashed, pickled and described as a JSON schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: ClassVar[str]
    # Parameters that say where something lies and not what it is: results do not depend on them.
    location: ClassVar[frozenset[str]] = frozenset()
    # Parameters of which a lower value does more, as a threshold: a rule takes the lowest that will do.
    lower_does_more: ClassVar[frozenset[str]] = frozenset()
    # Whether it looks at what a defender can't see; every table prints that word beside its numbers.
    oracle: ClassVar[bool] = False

    @classmethod
    def paths(cls) -> list[str]:
        """The parameters that are paths: what is written in a recipe starts from the recipe's folder."""
        return [
            name for name, field in cls.model_fields.items() if Path in (field.annotation, *get_args(field.annotation))
        ]

    def parameters(self) -> dict[str, Any]:
        """The parameters as plain data, defaults filled in.

        Raises:
            UsageError: one of them can't be written as plain data.
        """
        try:
            return self.model_dump(mode="json")
        except PydanticSerializationError as error:
            raise UsageError(
                f"the {self.kind} {type(self).__name__} has a parameter that is no plain data ({error})"
            ) from error


@dataclass(frozen=True)
class Origin:
    """Where a component's class came from: its plugin, the hook that registered it, and what `plugins check` takes."""

    plugin: str
    hook: str
    check: str


ORIGINS: "WeakKeyDictionary[type[Component], Origin]" = WeakKeyDictionary()  # the host knows, and writes it down


def component_error(component: Component, text: str) -> DefenseKitError:
    """An error that is a component's: its plugin, what it did, the hook it came by, and what to do."""
    who = f"the {component.kind} {type(component).__name__}"
    if origin := ORIGINS.get(type(component)):
        hint = f"`defensekit plugins check {origin.check}` tries it by itself"
        return DefenseKitError(f"{origin.plugin}: {who} {text} (registered by {origin.hook}; {hint})")
    return DefenseKitError(f"{who} of {type(component).__module__} {text}")


def call_component(component: Component, call: Callable[..., Result], *arguments: Any) -> Result:
    """Call a component; an exception of its own becomes a message that names it.

    Raises:
        DefenseKitError: the component raised; an error that is one already, a full disk and a lack of memory pass.
    """
    process = os.getpid()
    try:
        return call(*arguments)
    except (DefenseKitError, OSError):
        raise
    except (Exception, SystemExit) as error:
        if lacks_memory(error):
            raise
        raise component_error(component, f"failed: {one_line(error, component)}") from error
    finally:
        if os.getpid() != process:
            os._exit(1)  # it forked, and the copy came back: two of us would go on with the run


def one_line(error: BaseException, component: Component) -> str:
    """An exception in one line, with the line of the component's own module that it came from."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__") == type(component).__module__:
            return f"{text} ({Path(frame.f_code.co_filename).name}:{line})"
    return text
