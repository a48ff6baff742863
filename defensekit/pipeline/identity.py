"""What decides the numbers of a run: the same before it is run and read from its result."""

from collections.abc import Iterator
from typing import Any

from defensekit.pipeline.plan import Plan
from defensekit.pipeline.store import FORMAT
from defensekit.recipe.recipe import Defense, NamedComponent, Recipe
from defensekit.utils.files import data_digest

# Every key of a recipe stands in one of these; a new one belongs to identity unless the numbers can't depend on it.
# Under `data` and `training` all is identity; of `suspect` and `triggered.path` what lies there.
IDENTITY = {
    "model", "data", "attack", "suspect", "triggered.target", "triggered.path", "training", "precision",
    "defense.stage", "defense.estimator", "defense.scorer", "defense.selector", "defense.purifier", "defense.sanitizer",
    "defense.choose", "defense.compare", "metrics", "seed",
}  # fmt: skip
NOT_IDENTITY = {"name", "extends", "plugins", "requires", "executor", "observers"}


def parts(recipe: Recipe) -> Iterator[tuple[str, NamedComponent[Any]]]:
    """Every component that takes part in what a run computes, with its place in the recipe."""
    yield "model", recipe.model
    yield "data", recipe.data
    for place, named in (("attack", recipe.attack), ("suspect", recipe.suspect), ("triggered", recipe.triggered)):
        if named:
            yield place, named
    yield from _defense("defense", recipe.defense)
    if recipe.choose:
        yield "defense.choose", recipe.choose
    for name, other in recipe.compare.items():
        yield from _defense(f"defense.compare.{name}", other)
    for i, metric in enumerate(recipe.metrics):
        yield f"metrics.{i}", metric


def _defense(place: str, defense: Defense) -> Iterator[tuple[str, NamedComponent[Any]]]:
    for part, named in (
        ("estimator", defense.estimator),
        ("scorer", defense.scorer),
        ("selector", defense.selector),
        ("sanitizer", defense.sanitizer),
        ("sanitizer.model", defense.language_model),
    ):
        if named:
            yield f"{place}.{part}", named
    for i, step in enumerate(defense.purifier):
        yield f"{place}.purifier.{i}", step


def identified(plan: Plan) -> dict[str, Any]:
    """Everything that decides the numbers of a run, as plain data: no path, no name, no word for people.

    ``parts`` are the components with their parameters and the digest of their source, ``contents`` the digests of
    models, data and tables outside the store, ``machine`` is what stages run on.
    """
    recipe = plan.recipe
    found = dict(parts(recipe))
    contents = {"model": plan.base.digest, **plan.contents}
    if plan.given_suspect:
        contents["suspect"] = plan.given_suspect.digest
    for place, named in found.items():
        if ".purifier." in place and (digest := plan.step_contents(named)) is not None:
            contents[place] = digest
        if place.endswith(".sanitizer.model"):
            contents[place] = plan.language_model(named).digest
    return {
        "format": FORMAT,
        "parts": {place: named.identified for place, named in found.items()},
        "settings": {
            "sizes": recipe.sizes.model_dump(),
            "training": recipe.training.model_dump() if recipe.attack else None,
            "precision": recipe.precision,
            "target": recipe.triggered_target,
            "seed": recipe.seed,
        },
        "contents": contents,
        "machine": plan.machine,
    }


def identity(facts: dict[str, Any]) -> str:
    """The digest of what `identified` gives, and of what a result has recorded of it."""
    return data_digest(facts)
