"""Components built from their parameters, with errors explained."""

import json
from collections.abc import Collection
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from defensekit.utils.errors import KeyedError, choices

Model = TypeVar("Model", bound=BaseModel)


def build(model: type[Model], given: Any, beside: Collection[str] = ()) -> Model:
    """Build a component from its parameters, or a section of a recipe from its keys.

    Values are validated strictly, as JSON: 1 is a float, but "1" and true are not.

    Args:
        model: the class.
        given: the parameters, as plain data.
        beside: keys that are written beside the parameters and read elsewhere, which a typo may mean as well.

    Returns:
        The component or section.

    Raises:
        KeyedError: a parameter is unknown, missing or invalid.
    """
    try:
        text = json.dumps(given, default=to_jsonable_python)
    except (TypeError, ValueError) as error:
        raise KeyedError((), f"expected plain data, as YAML has it ({error})") from error
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = tuple(part for i, part in enumerate(first["loc"]) if i == 0 or not _is_union_tag(part))
        raise KeyedError(key, _explain(first, model, beside)) from error


def _is_union_tag(part: str | int) -> bool:
    """Whether a part of pydantic's location is the name of a type it tried (`str`, `dict[str,any]`), not a key."""
    return isinstance(part, str) and (part in ("str", "int", "float") or "[" in part)


def _section(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    """The model of the section at a path; the nearest one around it, where that is none."""
    for part in path:
        field = model.model_fields.get(str(part))
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return model


def _explain(error: Any, model: type[BaseModel], beside: Collection[str]) -> str:
    """The message for an error of pydantic: what was expected, what was given, and a similar key."""
    if error["type"] == "extra_forbidden":
        *above, typed = error["loc"]
        known = [*_section(model, tuple(above)).model_fields, *(() if above else beside)]
        return f"unknown key.{choices(str(typed), known)}"
    if error["type"] == "missing":
        return "this key is missing"
    text = str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0]) if error["loc"] else ""
    meaning = model.model_fields[name].description if name in model.model_fields else None
    got = json.dumps(error["input"], ensure_ascii=False, default=str)
    return f"{text[:1].lower()}{text[1:]}, got {got[:80]}" + (f" ({name}: {meaning})" if meaning else "")
