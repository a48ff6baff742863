"""The identity of a run: everything that decides its numbers, from a plan or from a result."""

from collections.abc import Iterator
from typing import Any

from defensekit.components import Purifier
from defensekit.pipeline.plan import Plan
from defensekit.pipeline.store import FORMAT
from defensekit.recipe.recipe import Defense, NamedComponent, Recipe
from defensekit.utils.files import data_digest

# Every key of a recipe is in one of these; a new one belongs to identity unless the numbers can't depend on it.
# Under `data` and `training` every key is identity; of `suspect` and `triggered.path` the contents are.
IDENTITY = {
    "model", "data", "attack", "suspect", "triggered.target", "triggered.path", "training", "retuning",
    "precision",
    "defense.stage", "defense.estimator", "defense.scorer", "defense.selector", "defense.purifier", "defense.sanitizer",
    "defense.filter", "defense.choose", "defense.refit", "defense.compare", "defense.detectors", "metrics", "seed",
    "baselines",
}  # fmt: skip
NOT_IDENTITY = {"name", "extends", "plugins", "requires", "executor", "observers"}


def parts(recipe: Recipe) -> Iterator[tuple[str, NamedComponent[Any]]]:
    """Every component of a run's computation, with its key in the recipe."""
    yield "model", recipe.model
    yield "data", recipe.data
    for key, named in (("attack", recipe.attack), ("suspect", recipe.suspect), ("triggered", recipe.triggered)):
        if named:
            yield key, named
    yield from _defense("defense", recipe.defense)
    if recipe.choose:
        yield "defense.choose", recipe.choose
    for name, other in recipe.compare.items():
        yield from _defense(f"defense.compare.{name}", other)
    for i, one in enumerate(recipe.detectors):
        yield f"defense.detectors.{i}", one.detector
        if one.language_model:
            yield f"defense.detectors.{i}.model", one.language_model
    for i, metric in enumerate(recipe.metrics):
        yield f"metrics.{i}", metric


def _defense(key: str, defense: Defense) -> Iterator[tuple[str, NamedComponent[Any]]]:
    for part, named in (
        ("estimator", defense.estimator),
        ("scorer", defense.scorer),
        ("selector", defense.selector),
        ("sanitizer", defense.sanitizer),
        ("sanitizer.model", defense.language_model),
        ("filter", defense.filter),
    ):
        if named:
            yield f"{key}.{part}", named
    for i, step in enumerate(defense.purifier):
        yield f"{key}.purifier.{i}", step


def identified(plan: Plan) -> dict[str, Any]:
    """Everything that decides the numbers of a run, as plain data, without paths, names and titles.

    ``parts`` are the components with their parameters and the digest of their source, ``contents`` the digests of
    models, data and tables outside the store, ``machine`` describes where stages run.
    """
    recipe = plan.recipe
    components = dict(parts(recipe))
    contents = {"model": plan.base.digest, **plan.contents}
    if plan.given_suspect:
        contents["suspect"] = plan.given_suspect.digest
    for key, named in components.items():
        if isinstance(named.component, Purifier) and (digest := plan.step_contents(named)) is not None:
            contents[key] = digest
        if key.endswith(".model"):  # that a sanitizer or detector reads with
            contents[key] = plan.language_model(named).digest
    return {
        "format": FORMAT,
        "parts": {key: named.identified for key, named in components.items()},
        "settings": {
            "sizes": recipe.sizes.model_dump(),
            "training": recipe.training.model_dump() if recipe.attack else None,
            "precision": recipe.precision,
            "target": recipe.triggered_target,
            "refit": recipe.refit,
            "seed": recipe.seed,
            **({"retuning": recipe.retuning.model_dump(mode="json")} if recipe.retuning else {}),
            **({} if recipe.baselines else {"baselines": False}),
        },
        "contents": contents,
        "machine": plan.machine,
        **({"alone": plan.alone} if recipe.lone and plan.alone != plan.machine else {}),
    }


def identity(facts: dict[str, Any]) -> str:
    """The digest of what `identified` gives, or of a result's record of it."""
    return data_digest(facts)
