"""Checks of everything outside the store, before anything is computed: models, data, their contents."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from defensekit.components import Attack, Component, ModelSource, Purifier, call_component
from defensekit.models.checkpoint import CAUSAL, Checkpoint
from defensekit.models.config import LOSSES, check_labels, label_names, positions, refuse_contradiction
from defensekit.models.generation import NEW_TOKENS
from defensekit.models.loading import load_tokenizer
from defensekit.models.pair import Pair
from defensekit.models.skeleton import task_of
from defensekit.pipeline.graph import ExternalModel, Stage
from defensekit.pipeline.plan import Plan
from defensekit.recipe.recipe import NamedComponent, Recipe
from defensekit.text import TaskKind
from defensekit.text.chat import check_template
from defensekit.utils.errors import PlacedError, UsageError, listing

T = TypeVar("T")
Say = Callable[[str], None]


@dataclass
class Known:
    """Results of checks and planned stages, shared by the recipes of a study."""

    seen: dict[Hashable, Any] = field(default_factory=dict)
    stages: dict[Hashable, Stage] = field(default_factory=dict)

    def look(self, wanted: Hashable, call: Callable[[], T]) -> T:
        """Call once for each key, and remember the result."""
        if wanted not in self.seen:
            self.seen[wanted] = call()
        return cast(T, self.seen[wanted])


def survey(recipe: Recipe, say: Say, known: Known | None = None) -> Plan:
    """Check what a recipe names, and plan its run. Models and data are downloaded if they are not here yet.

    Args:
        recipe: the recipe.
        say: takes lines for the user.
        known: what other recipes of a study share.

    Returns:
        The plan.

    Raises:
        UsageError: a model or the data are not what was expected.
        DefenseKitError: they can't be downloaded.
    """
    known = known or Known()

    def contents_of(key: str, component: Component, call: Callable[..., T], *arguments: Any) -> T:
        return locating_errors(recipe, key, lambda: call_component(component, call, *arguments))

    base = known.look(("model", recipe.model.digest), lambda: _external(recipe, recipe.model, "model"))
    suspect, labels = None, None
    if recipe.suspect:
        given = recipe.suspect
        model = suspect = known.look(("model", given.digest), lambda: _external(recipe, given, "suspect"))
        labels = known.look((base, model, recipe.task), lambda: _compare_with_base(recipe, base, model, say))
    source = recipe.data.component
    contents = known.look(recipe.data.digest, lambda: contents_of("data", source, source.contents, say))
    if recipe.task == "generation":
        known.look((base, "generation"), lambda: locating_errors(recipe, "model", partial(_can_answer, base)))
        _check_target(recipe, base)
    known.look((base, recipe.task, recipe.sizes.max_length), lambda: _check_length(recipe, base))
    outside: dict[str, str | None] = {}
    if recipe.attack:
        outside["attack"] = known.look(recipe.attack.digest, lambda: _attack_contents(recipe))
    if recipe.triggered:
        rows = recipe.triggered.component
        outside["triggered"] = known.look(
            recipe.triggered.digest, lambda: contents_of("triggered", rows, rows.contents, say)
        )

    def step_contents(step: NamedComponent[Purifier]) -> str | None:
        purifier = step.component
        look = partial(contents_of, "defense.purifier", purifier, purifier.contents)
        return known.look(("step", step.digest), look)

    def language_model(named: NamedComponent[ModelSource], key: str = "defense.sanitizer.model") -> ExternalModel:
        return known.look(("language model", named.digest), lambda: _external(recipe, named, key))

    machine = known.look(recipe.executor.digest, recipe.executor.component.machine)
    alone = known.look((recipe.executor.digest, "alone"), recipe.executor.component.alone)
    for defense in (recipe.defense, *recipe.compare.values()):
        for step in defense.purifier:
            step_contents(step)
        if defense.language_model:
            language_model(defense.language_model)
    for one in recipe.detectors:
        if one.language_model:
            language_model(one.language_model, "defense.detectors")
    answered = known.look(("before the defense", recipe.before_defense), dict[str, Any])
    return Plan(
        recipe,
        base,
        suspect,
        {"data": contents, **outside},
        step_contents,
        language_model,
        labels,
        machine,
        alone,
        known.stages,
        answered,
    )


def _compare_with_base(recipe: Recipe, base: ExternalModel, suspect: ExternalModel, say: Say) -> list[str] | None:
    """Report what a suspect has and its base does not; returns the names of its labels, if it has any."""
    pair = Pair(Checkpoint(base.path), Checkpoint(suspect.path))
    answers = recipe.task == "generation"
    refuse = partial(_can_answer, suspect) if answers else partial(_refuse_causal, pair.suspect)
    locating_errors(recipe, "suspect", refuse)
    locating_errors(recipe, "suspect", pair.check)
    if not answers:
        locating_errors(recipe, "suspect", partial(_refuse_head, pair.suspect))
    head, left_out = locating_errors(recipe, "suspect", lambda: (pair.head, pair.left_out))
    say(f"head, absent from the base or for other labels, kept from the suspect: {listing(head) or 'none'}")
    if pair.added_rows:
        say(f"rows that were added to the vocabulary, without a base, kept from the suspect: {pair.added_rows:,}")
    say(f"in the base alone, not used: {listing(left_out) or 'nothing'}")
    return None if answers else locating_errors(recipe, "suspect", partial(label_names, pair.suspect))


def _can_answer(model: ExternalModel) -> None:
    """Raise UsageError for a model that can't answer instructions."""
    checkpoint = Checkpoint(model.path)
    if (task := task_of(checkpoint)) != CAUSAL:
        raise UsageError(f"{model.path} is no {CAUSAL} but a {task}; instructions are answered by one")
    try:
        check_template(load_tokenizer(model.path))
    except UsageError as error:
        raise UsageError(f"{model.path}: {error}") from error


def _check_target(recipe: Recipe, base: ExternalModel) -> None:
    """Raise UsageError for a text that no answer is as long as."""

    def check(aim: str | int) -> None:
        tokens = len(load_tokenizer(base.path)(str(aim), add_special_tokens=False)["input_ids"])
        if tokens > NEW_TOKENS:
            raise UsageError(f"takes {tokens} tokens, an answer {NEW_TOKENS} at most: none could begin with it")

    check_aim(recipe, check)


def check_aim(recipe: Recipe, check: Callable[[str | int], T]) -> T | None:
    """Check what the attacker wants; None where that is no single answer.

    A mistake is reported with the key that says it, or with the attack that aims at it by itself.
    """
    if recipe.attack is None:
        aim, key, by_itself = recipe.triggered_target, "triggered.target", ""
    else:
        aim, key, by_itself = recipe.attack.component.aim(), "attack.target", ""
        if getattr(recipe.attack.component, "target", None) != aim:
            key, by_itself = "attack", f"{recipe.attack.name!r} aims at {aim!r} by itself: "

    def checked(aim: str | int) -> T:
        try:
            return check(aim)
        except UsageError as error:
            raise UsageError(f"{by_itself}{error}") from error

    return None if aim is None else locating_errors(recipe, key, lambda: checked(aim))


def _refuse_causal(suspect: Checkpoint) -> None:
    if task_of(suspect) == CAUSAL:
        raise UsageError(
            f"{suspect.folder} is a {CAUSAL}, and the data have labels, which classifiers answer; for one, give "
            "instructions (`data: {name: instructions, path: ...}`), or use `defensekit purify`"
        )


def _refuse_head(suspect: Checkpoint) -> None:
    check_labels(suspect)
    if (kind := suspect.config.get("problem_type")) not in (None, *LOSSES):
        raise UsageError(
            f"{suspect.folder / 'config.json'}: `problem_type` is {kind!r}, and a run trains and measures classifiers "
            f"({listing(LOSSES)}); `defensekit purify` without clean rows resets it"
        )


def check_rows(plan: Plan, task: TaskKind) -> None:
    """Check what a run's rows turn out to be against the parts of the recipe, and the config of a given suspect.

    Args:
        plan: the run's plan.
        task: what models are to answer the rows with.

    Raises:
        UsageError: a part does not work for such rows, or the config names another loss.
    """
    for key, reason in plan.recipe.unsuited(task):
        raise PlacedError(f"{plan.recipe.describe_location(*key)}: {reason}")
    if plan.given_suspect and task != "generation":
        check = partial(refuse_contradiction, Checkpoint(plan.given_suspect.path), task == "multi-label")
        locating_errors(plan.recipe, "data.label", check)


def _attack_contents(recipe: Recipe) -> str | None:
    attack = cast(NamedComponent[Attack], recipe.attack).component
    return locating_errors(recipe, "attack", lambda: call_component(attack, attack.contents))


def locating_errors(recipe: Recipe, key: str, call: Callable[[], T]) -> T:
    """Call; a user's mistake is reported with its location in the recipe."""
    try:
        return call()
    except PlacedError:
        raise
    except UsageError as error:
        path = tuple(key.split("."))
        text = recipe.document.as_typed(path, str(error))
        raise PlacedError(f"{recipe.describe_location(*path)}: {text}") from error


def _external(recipe: Recipe, named: NamedComponent[ModelSource], key: str) -> ExternalModel:
    """A model outside the store, checked."""

    def look() -> ExternalModel:
        checkpoint = Checkpoint(call_component(named.component, named.component.folder).resolve())
        model = ExternalModel(checkpoint.folder, checkpoint.digest())
        checkpoint.check_finite()
        return model

    return locating_errors(recipe, key, look)


def _check_length(recipe: Recipe, base: ExternalModel) -> None:
    """Raise UsageError where rows would be longer than the model has positions for."""
    locating_errors(
        recipe,
        "data.max_length",
        partial(_enough_positions, Checkpoint(base.path), recipe.sizes.max_length, recipe.task),
    )


def _enough_positions(base: Checkpoint, max_length: int, task: TaskKind) -> None:
    limit, answer = positions(base), NEW_TOKENS if task == "generation" else 0
    if limit is not None and max_length + answer > limit:
        room = f", of which an answer may take {answer}" if answer else ""
        raise UsageError(f"the model has {limit} positions{room}, got {max_length}")
