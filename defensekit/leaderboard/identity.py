"""The identity of a run, computed anew from its recipe as plain data: no plugin is loaded, no file is opened."""

from collections.abc import Iterator
from typing import Any

from defensekit.recipe.keys import Sizes


def parts_of(recipe: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every component of a resolved recipe with its key, as `defensekit.pipeline.identity.parts` has them."""
    for key in ("model", "data", "attack"):
        yield key, recipe[key]
    defense = recipe["defense"]
    for key in ("estimator", "scorer", "selector", "sanitizer", "filter"):
        if key in defense:
            yield f"defense.{key}", defense[key]
            if "model" in defense[key] and key == "sanitizer":
                yield "defense.sanitizer.model", defense[key]["model"]
    for i, step in enumerate(defense.get("purifier", ())):
        yield f"defense.purifier.{i}", step
    if "choose" in defense:
        yield "defense.choose", defense["choose"]
    for i, one in enumerate(defense.get("detectors", ())):
        yield f"defense.detectors.{i}", one
        if "model" in one:
            yield f"defense.detectors.{i}.model", one["model"]
    for i, metric in enumerate(recipe["metrics"]):
        yield f"metrics.{i}", metric


def settings_of(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved recipe decides the numbers besides its components."""
    defense = recipe["defense"]
    sizes = {key: recipe["data"].get(key, 0) for key in Sizes.model_fields}
    return {
        "sizes": sizes,
        "training": recipe["training"],
        "precision": recipe["precision"],
        "target": None,
        "refit": bool(defense.get("refit")),
        "seed": recipe["seed"],
        **{key: recipe[key] for key in ("retuning", "baselines") if key in recipe},
    }


def disagreements(recipe: dict[str, Any], identified: dict[str, Any]) -> Iterator[str]:
    """Where what a result was identified by is not what its recipe says.

    Parameters that the recipe has and the identity has not say where something is; contents stand for them.
    """
    recorded = identified["parts"]
    given = dict(parts_of(recipe))
    for key in dict.fromkeys((*recorded, *given)):
        if key not in given or key not in recorded:
            yield f"{key} is in {'the identity' if key in recorded else 'the recipe'} alone"
            continue
        name = given[key].get("rule") if key == "defense.choose" else given[key].get("name")
        if recorded[key]["name"] != name:
            yield f"{key} is {name!r} in the recipe, {recorded[key]['name']!r} in the identity"
        for parameter, value in recorded[key]["parameters"].items():
            if parameter not in given[key] or given[key][parameter] != value:
                yield f"{key}.{parameter} is not {value!r} in the recipe, as the identity says"
    if identified["settings"] != settings_of(recipe):
        yield "sizes, training, precision or seed differ between recipe and identity"
