"""A look at everything that lies outside the store, once, before anything is computed: models, data, their contents."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

from defensekit.checkpoint import Checkpoint
from defensekit.components import Attack, DatasetSource, ModelSource, blame
from defensekit.errors import PlacedError, UsageError, listing
from defensekit.pair import Pair
from defensekit.plan import External, Plan
from defensekit.recipe import Named, Recipe

Made = TypeVar("Made")
Say = Callable[[str], None]


def survey(recipe: Recipe, say: Say) -> Plan:
    """The plan of a run. What a recipe names is fetched where it is not here yet; ``say`` takes lines for the user.

    Raises:
        UsageError: a model or the data are not what was expected.
        DefenseKitError: they can't be had.
    """
    base = _external(recipe, recipe.model, "model")
    suspect, labels = None, None
    if recipe.suspect:
        suspect = _external(recipe, recipe.suspect, "suspect")
        pair = Pair(Checkpoint(base.path), Checkpoint(suspect.path))
        head, left_out = at(recipe, "suspect", lambda: (pair.head, pair.left_out))
        say(f"head, absent from the base, kept from the suspect: {listing(head) or 'none'}")
        say(f"in the base alone, not used: {listing(left_out) or 'nothing'}")
        labels = labels_of(pair.suspect)
    source = cast(DatasetSource, recipe.data.component)
    contents = at(recipe, "data", lambda: blame(source, source.contents, say))
    at(recipe, "data.max_length", partial(_check_length, Checkpoint(base.path), recipe.sizes.max_length))
    if recipe.attack:
        attack = cast(Attack, recipe.attack.component)
        at(recipe, "attack", lambda: blame(attack, attack.contents))
    if recipe.triggered:
        given = cast(DatasetSource, recipe.triggered.component)
        at(recipe, "triggered", lambda: blame(given, given.contents, say))
    return Plan(recipe, base, suspect, contents, labels)


def at(recipe: Recipe, key: str, call: Callable[[], Made]) -> Made:
    """Call; a user's mistake is told with the place in the recipe."""
    try:
        return call()
    except PlacedError:
        raise
    except UsageError as error:
        raise PlacedError(f"{recipe.where(*key.split('.'))}: {error}") from error


def _external(recipe: Recipe, named: Named, key: str) -> External:
    """A model outside the store, checked."""

    def look() -> External:
        source = cast(ModelSource, named.component)
        checkpoint = Checkpoint(blame(source, source.folder).resolve())
        found = External(checkpoint.folder, checkpoint.digest())
        checkpoint.check_finite()
        return found

    return at(recipe, key, look)


def positions(model: Checkpoint) -> int | None:
    """How many tokens a model has positions for; None where there is no last one."""
    if model.config.get("relative_attention"):
        return None
    for key in ("max_position_embeddings", "n_positions"):
        limit = model.config.get(key)
        if isinstance(limit, int):
            # RoBERTa counts positions from behind the padding token's number.
            return limit - (2 if "roberta" in str(model.config.get("model_type")) else 0)
    return None


def _check_length(base: Checkpoint, max_length: int) -> None:
    """Raise UsageError where rows would be longer than the model has positions for."""
    limit = positions(base)
    if limit is not None and max_length > limit:
        raise UsageError(f"the model has {limit} positions, got {max_length}")


def labels_of(suspect: Checkpoint) -> list[str] | None:
    """The label names in a suspect's config; None where it has only numbers for them."""
    found = suspect.config.get("id2label")
    if not isinstance(found, dict) or not all(str(key).isdecimal() for key in found):
        return None
    names = [str(found[key]) for key in sorted(found, key=int)]
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names
