"""What every component is: a frozen pydantic model whose fields are its YAML parameters."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Component(BaseModel):
    """A named part of a run.

    Fields are the YAML parameters: typed, bounded, documented; unknown ones are refused. A component never holds a
    tensor, so it can be hashed, pickled and described as a JSON schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: ClassVar[str]
    # Parameters that say where something lies and not what it is: results do not depend on them.
    location: ClassVar[frozenset[str]] = frozenset()

    def parameters(self) -> dict[str, Any]:
        """The parameters as plain data, defaults filled in."""
        return self.model_dump(mode="json")
