"""The JSON schema of a recipe, plugins' parameters included: for completion and checks in an editor."""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from defensekit.components import KINDS, Component, Detector, Sanitizer
from defensekit.host.registry import Host
from defensekit.recipe.keys import (
    DefenseKeys,
    InputDefenseKeys,
    RetuningKeys,
    Sizes,
    Top,
    TrainingDefenseKeys,
    TriggeredKeys,
)
from defensekit.training import TrainingSettings
from defensekit.utils.errors import UsageError

Schema = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A component's parameter in words; ``default`` is None where it is required."""

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
            _type_of(field),
            ", ".join(_bounds_of(field)),
            None if name in schema.get("required", []) else _word(field.get("default")),
            field.get("description", ""),
        )
        for name, field in schema["properties"].items()
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

    A recipe that extends another may omit anything, and remove keys with null.
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
        model = {"anyOf": [_TEXT, *self.named("model"), self.hub_model()]}
        parts["detectors"] = _list(self.reading(Detector, model))
        compared = {key: part for key, part in parts.items() if key != "detectors"}
        compared["purifier"] = {"anyOf": [purifier, _list(purifier)]}
        chosen = {
            "choose": {"anyOf": self.named("rule", "rule")},
            "compare": {"additionalProperties": {**_OBJECT, "properties": compared}},
        }
        file, hub = self.parameters("dataset", "file"), self.parameters("dataset", "hub")
        elsewhere = {"name": _TEXT, **hub, **file, **sizes}  # a path or a hub's id, in place of a source's name
        del elsewhere["path"], elsewhere["id"]
        sanitizer = self.reading(Sanitizer, model)
        rewriting = {
            "sanitizer": sanitizer,
            "choose": chosen["choose"],
            "detectors": parts["detectors"],
            "compare": {"additionalProperties": {**_OBJECT, "properties": {"sanitizer": sanitizer}}},
        }
        filters = self.spec("filter")
        filtering = {
            "filter": filters,
            "choose": chosen["choose"],
            "compare": {"additionalProperties": {**_OBJECT, "properties": {"filter": filters}}},
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
                "retuning": _object(RetuningKeys),
                "defense": {
                    "if": {"required": ["stage"], "properties": {"stage": {"const": "input"}}},
                    "then": inputs,
                    "else": {
                        "if": {"required": ["stage"], "properties": {"stage": {"const": "training"}}},
                        "then": _filled(TrainingDefenseKeys, filtering),
                        "else": weights,
                    },
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

    def reading(self, kind: type[Sanitizer] | type[Detector], model: Schema) -> Schema:
        """As `spec`; components that read with a language model need a mapping, with that model."""
        alone, mappings = [], []
        for name in self.host.names(kind.kind):
            mapping = self.component(kind.kind, name, "name", {})
            with suppress(UsageError):  # it can't be loaded; a recipe that uses it reports that
                if self.host.find(kind, name).reads_with_language_model:
                    mapping["properties"]["model"] = model
                    mapping["required"] = [*mapping["required"], "model"]
                else:
                    alone.append(name)
            mappings.append(mapping)
        return {"anyOf": [{"enum": alone}, *mappings] if alone else mappings}

    def spec(self, kind: str) -> Schema:
        """A component by its name, or a mapping with its name and parameters."""
        return {"anyOf": [{"enum": self.host.names(kind)}, *self.named(kind)]}

    def named(self, kind: str, key: str = "name", extra: Schema | None = None) -> list[Schema]:
        """A mapping with name and parameters for every component of a kind."""
        return [self.component(kind, name, key, extra or {}) for name in self.host.names(kind)]

    def component(self, kind: str, name: str, key: str, extra: Schema) -> Schema:
        try:
            schema = _object(self.host.find(kind, name))
        except UsageError:  # it can't be loaded, or not be written as YAML; a recipe that uses it reports that
            return {"type": "object", "properties": {key: {"const": name}}, "required": [key]}
        schema["properties"] = {key: {"const": name}} | schema["properties"] | extra
        schema["required"] = [key, *schema.get("required", [])]
        return schema

    def parameters(self, kind: str, name: str) -> Schema:
        properties: Schema = _object(self.host.find(kind, name))["properties"]
        return properties


_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object", "additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _named(properties: Schema) -> Schema:
    return {**_OBJECT, "properties": properties, "required": ["name"]}


def _filled(model: type[BaseModel], given: Schema, extra: Schema | None = None) -> Schema:
    """A model's schema with some properties filled in; descriptions and defaults stay."""
    whole = _object(model)
    for key, schema in given.items():
        own = whole["properties"][key]
        whole["properties"][key] = {k: own[k] for k in ("description", "default", "type") if k in own} | schema
    whole["properties"] |= extra or {}
    return whole | {"additionalProperties": False}


def _object(model: type[BaseModel] | type[Component]) -> Schema:
    """A model's schema with references inlined, and without titles that only repeat names."""
    try:
        schema = model.model_json_schema()
    except PydanticUserError as error:
        raise UsageError(
            f"{model.__name__} has a parameter that can't be written in a recipe ({error.message})"
        ) from error
    shared = schema.pop("$defs", {})

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

    inlined: Schema = plain(schema)
    return inlined


def _partial(schema: Schema) -> Schema:
    """The schema of an extending recipe: nothing is required, and null is allowed for every key."""

    def relax(node: Any) -> Any:
        if isinstance(node, list):
            return [relax(item) for item in node]
        if not isinstance(node, dict):
            return node
        relaxed_node = {}
        for key, value in node.items():
            if key == "properties":
                relaxed_node[key] = {name: {"anyOf": [relax(inner), {"type": "null"}]} for name, inner in value.items()}
            elif key not in ("required", "oneOf"):
                relaxed_node[key] = value if key == "if" else relax(value)
        return relaxed_node

    relaxed: Schema = relax(schema)
    return relaxed
