"""A component with example parameters."""

from typing import Any, TypeVar

from defensekit.components import Component
from defensekit.host.parameters import build
from defensekit.utils.errors import KeyedError, UsageError

Part = TypeVar("Part", bound=Component)


def example(component: type[Part], given: dict[str, Any] | None = None) -> Part:
    """Build a component from given parameters, the first of a field's ``examples``, or its default.

    A field with neither gets a value that its type and bounds allow, if that can be derived.

    Raises:
        UsageError: a parameter is missing or invalid.
    """
    schema = component.model_json_schema()
    values: dict[str, Any] = {}
    for name, described in schema.get("properties", {}).items():
        if described.get("examples"):
            values[name] = described["examples"][0]
        elif name in schema.get("required", ()) and (value := _evident(described)) is not None:
            values[name] = value
    values |= given or {}
    try:
        return build(component, values)
    except KeyedError as error:
        name = ".".join(map(str, error.key))
        where = f"the parameter {name!r} of" if name else "the parameters of"
        missing = name in component.model_fields and name not in values
        hint = " (give one with --set, or let the field have `examples=[...]`)" if missing else ""
        raise UsageError(f"{where} {component.__name__}: {error.text}{hint}") from error


def _evident(described: dict[str, Any]) -> Any:
    if values := described.get("enum", [described["const"]] if "const" in described else []):
        return values[0]
    if described.get("type") == "boolean":
        return False
    if described.get("type") in ("integer", "number"):
        low = described.get("minimum", described.get("exclusiveMinimum"))
        high = described.get("maximum", described.get("exclusiveMaximum"))
        if low is not None and high is not None:
            value = (low + high) / 2
        else:
            value = low + 1 if low is not None else high - 1 if high is not None else 1
        return round(value) if described["type"] == "integer" else float(value)
    return None
