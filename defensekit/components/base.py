"""What every component is: a frozen pydantic model whose fields are its YAML parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

from defensekit.errors import DefenseKitError, UsageError, lacks_memory

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


def blame(component: Component, call: Callable[..., Result], *arguments: Any) -> Result:
    """Call a component; an exception of its own becomes a message that names it.

    Raises:
        DefenseKitError: the component raised; an error that is one already, a full disk and a lack of memory pass.
    """
    try:
        return call(*arguments)
    except (DefenseKitError, OSError):
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        who = f"the {component.kind} {type(component).__name__} of {type(component).__module__}"
        raise DefenseKitError(f"{who} failed: {type(error).__name__}: {error}") from error
