"""The JSON schema of a recipe, plugins' parameters included: what an editor's YAML server completes and checks by."""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from defensekit.components import KINDS, Component, Sanitizer
from defensekit.host.registry import Host
from defensekit.recipe.keys import DefenseKeys, InputDefenseKeys, Sizes, Top, TriggeredKeys
from defensekit.training import TrainingSettings
from defensekit.utils.errors import UsageError

Schema = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A component's parameter in words; ``default`` is None where it has to be given."""

    name: str
    type: str
    bounds: str
    default: str | None
    meaning: str


def parameters(component: type[Component]) -> list[Parameter]:
    """The parameters of a component, in the order of its fields."""
    schema = _object(component)
    return [
        Parameter(
            name,
            _type_of(found),
            ", ".join(_bounds_of(found)),
            None if name in schema.get("required", []) else _word(found.get("default")),
            found.get("description", ""),
        )
        for name, found in schema["properties"].items()
    ]


_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "pattern": "matches {}",
}
_TYPES = {"string": "text", "null": "nothing"}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _type_of(schema: Schema) -> str:
    if "enum" in schema or "const" in schema:
        return " | ".join(map(_word, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        return " | ".join(_type_of(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    if schema.get("format") == "path":
        return "path"
    named = str(schema.get("type", "anything"))
    return _TYPES.get(named, named)


def _bounds_of(schema: Schema) -> list[str]:
    inner = [*schema.get("anyOf", []), schema.get("items") or {}]
    own = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return own + [bound for part in inner for bound in _bounds_of(part)] if schema else []


def recipe_schema(host: Host) -> Schema:
    """The schema (JSON Schema draft 7) of the recipes that can be written with the components of a host.

    A recipe that extends another may leave out anything, and take keys back with null.
    """
    whole = _Writer(host).recipe()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "DefenseKit recipe",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": _partial(whole),
        "else": {**whole, "required": ["name", "model", "data", "defense"], "oneOf": _EITHER},
    }


_EITHER = [{"required": ["attack"]}, {"required": ["suspect"]}]


class _Writer:
    def __init__(self, host: Host) -> None:
        self.host = host

    def recipe(self) -> Schema:
        sizes = _object(Sizes)["properties"]
        parts = self.parts(DefenseKeys)
        purifier = parts["purifier"]["items"]
        compared = {**parts, "purifier": {"anyOf": [purifier, _list(purifier)]}}
        chosen = {
            "choose": {"anyOf": self.named("rule", "rule")},
            "compare": {"additionalProperties": {**_OBJECT, "properties": compared}},
        }
        file, hub = self.parameters("dataset", "file"), self.parameters("dataset", "hub")
        elsewhere = {"name": _TEXT, **hub, **file, **sizes}  # a path or a hub's id, in place of a source's name
        del elsewhere["path"], elsewhere["id"]
        model = {"anyOf": [_TEXT, *self.named("model"), self.hub_model()]}
        sanitizer = self.sanitizer(model)
        rewriting = {
            "sanitizer": sanitizer,
            "choose": chosen["choose"],
            "compare": {"additionalProperties": {**_OBJECT, "properties": {"sanitizer": sanitizer}}},
        }
        weights, inputs = _filled(DefenseKeys, {**parts, **chosen}), _filled(InputDefenseKeys, rewriting)
        return _filled(
            Top,
            {
                **self.parts(Top),
                "model": model,
                "data": {"anyOf": [_TEXT, *self.named("dataset", extra=sizes), _named(elsewhere)]},
                "triggered": _filled(TriggeredKeys, {}, {**file, "path": _TEXT}),
                "training": _object(TrainingSettings),
                "defense": {
                    "if": {"required": ["stage"], "properties": {"stage": {"const": "input"}}},
                    "then": inputs,
                    "else": weights,
                },
            },
        )

    def parts(self, model: type[BaseModel]) -> Schema:
        """The keys of a section that are called like a kind: each takes one component of it, or a list of them."""
        filled = {}
        for key, own in _object(model)["properties"].items():
            if (kind := key if key in KINDS else key.removesuffix("s")) in KINDS:
                arrays = [part for part in (own, *own.get("anyOf", ())) if part.get("type") == "array"]
                filled[key] = {**arrays[0], "items": self.spec(kind)} if arrays else self.spec(kind)
        return filled

    def hub_model(self) -> Schema:
        return _named({"name": _TEXT, "revision": self.parameters("model", "hub")["revision"]})

    def sanitizer(self, model: Schema) -> Schema:
        """As `spec`; those that read with a language model are written as a mapping, with their model."""
        alone, mappings = [], []
        for name in self.host.names("sanitizer"):
            made = self.component("sanitizer", name, "name", {})
            with suppress(UsageError):  # it can't be loaded; the recipe that takes it will say so
                if self.host.find(Sanitizer, name).reads_with_language_model:
                    made["properties"]["model"] = model
                    made["required"] = [*made["required"], "model"]
                else:
                    alone.append(name)
            mappings.append(made)
        return {"anyOf": [{"enum": alone}, *mappings] if alone else mappings}

    def spec(self, kind: str) -> Schema:
        """A component by its name, or a mapping with its name and parameters."""
        return {"anyOf": [{"enum": self.host.names(kind)}, *self.named(kind)]}

    def named(self, kind: str, key: str = "name", extra: Schema | None = None) -> list[Schema]:
        """A mapping with name and parameters for every component of a kind."""
        return [self.component(kind, name, key, extra or {}) for name in self.host.names(kind)]

    def component(self, kind: str, name: str, key: str, extra: Schema) -> Schema:
        try:
            made = _object(self.host.find(kind, name))
        except UsageError:  # it can't be loaded, or not be written as YAML; the recipe that takes it will say so
            return {"type": "object", "properties": {key: {"const": name}}, "required": [key]}
        made["properties"] = {key: {"const": name}} | made["properties"] | extra
        made["required"] = [key, *made.get("required", [])]
        return made

    def parameters(self, kind: str, name: str) -> Schema:
        found: Schema = _object(self.host.find(kind, name))["properties"]
        return found


_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object", "additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _named(properties: Schema) -> Schema:
    return {**_OBJECT, "properties": properties, "required": ["name"]}


def _filled(model: type[BaseModel], given: Schema, extra: Schema | None = None) -> Schema:
    """A model's schema with what it leaves open filled in; descriptions and defaults stay."""
    made = _object(model)
    for key, schema in given.items():
        own = made["properties"][key]
        made["properties"][key] = {k: own[k] for k in ("description", "default", "type") if k in own} | schema
    made["properties"] |= extra or {}
    return made | {"additionalProperties": False}


def _object(model: type[BaseModel] | type[Component]) -> Schema:
    """A model's schema with nothing to look up elsewhere, and without the titles that only repeat names."""
    try:
        made = model.model_json_schema()
    except PydanticUserError as error:
        raise UsageError(f"{model.__name__} has a parameter that no recipe can hold ({error.message})") from error
    shared = made.pop("$defs", {})

    def plain(node: Any, within: tuple[str, ...] = ()) -> Any:
        if isinstance(node, list):
            return [plain(item, within) for item in node]
        if not isinstance(node, dict):
            return node
        if name := node.get("$ref", "").rpartition("/")[2] if isinstance(node.get("$ref"), str) else "":
            beside = {k: v for k, v in node.items() if k != "$ref"}
            # A type that holds itself is anything from there on.
            return plain({} if name in within else {**shared[name], **beside}, (*within, name))
        # A parameter may be called `title` too: then it is a schema and no text.
        return {k: plain(v, within) for k, v in node.items() if not (k == "title" and isinstance(v, str))}

    found: Schema = plain(made)
    return found


def _partial(schema: Schema) -> Schema:
    """The schema of what is laid over a recipe: nothing is required, and null is allowed for every key."""

    def relax(node: Any) -> Any:
        if isinstance(node, list):
            return [relax(item) for item in node]
        if not isinstance(node, dict):
            return node
        made = {}
        for key, value in node.items():
            if key == "properties":
                made[key] = {name: {"anyOf": [relax(inner), {"type": "null"}]} for name, inner in value.items()}
            elif key not in ("required", "oneOf"):
                made[key] = value if key == "if" else relax(value)
        return made

    relaxed: Schema = relax(schema)
    return relaxed
