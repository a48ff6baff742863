"""The graph of a run's stages: plain data, planned without computing anything."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from defensekit.components import Attack, Component, Detector, Estimator, Filter, ModelSource, Purifier, Sanitizer
from defensekit.defense.purification import searching
from defensekit.defense.triggers.search import PARTS
from defensekit.pipeline.store import key_of
from defensekit.recipe.recipe import Defense, NamedComponent, NamedDetector, Recipe
from defensekit.text import ROLES
from defensekit.training import TrainingSettings
from defensekit.utils.seeds import Seeds

# The least that the base fine-tuned anew is trained: with 768 rows MiniLM has an ACC of .782 after 48 steps of 32 rows,
# .800 after 96 of 16, .807 after 192. Trained less, it would flatter every defense.
HEAD_STEPS = 192
# Rows per step of the attacker's further training: with a few rows a larger batch leaves hardly a step.
RETUNING_BATCH = 8


@dataclass(frozen=True, eq=False)
class Stage:
    """A planned stage: plain data, and the stages that its inputs come from."""

    plain: dict[str, Any]
    inputs: tuple["Stage", ...]

    @cached_property
    def key(self) -> str:
        """The key of its artifact in the store."""
        return key_of(self.plain)


@dataclass(frozen=True)
class ExternalModel:
    """A model outside the store: its path, and the digest of its contents."""

    path: Path
    digest: str


Model = Stage | ExternalModel

# The kinds of stages whose numbers depend on the machine.
_NUMERIC_KINDS = {
    "train", "plant", "retune", "control", "screen", "judge", "statistics", "purify", "predict", "inspect", "sanitize",
    "features", "score", "fit", "detect",
}  # fmt: skip


@dataclass(frozen=True)
class DefenseOutcome:
    """The outcome of a defense: a model, what is done to rows before it reads them, the rows that it was trained on."""

    model: Model
    read: Callable[[Stage], Stage] = lambda rows: rows
    kept: Stage | None = None


def closure(stages: Iterable[Stage], cached: set[str] | frozenset[str] = frozenset()) -> dict[str, Stage]:
    """Stages and their inputs, by key, inputs first; without cached stages and the inputs of these alone."""
    stages_by_key: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in stages_by_key or stage.key in cached:
            return
        for needed in stage.inputs:
            visit(needed)
        stages_by_key[stage.key] = stage

    for stage in stages:
        visit(stage)
    return stages_by_key


Params = tuple[tuple[str, Any], ...]


def _thawed(value: Any) -> Any:
    """Plain data from hashable parameters: those are compared a thousand times, and written once."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, frozenset):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


T = TypeVar("T")


def once(method: "Callable[[Plan], T]") -> "Callable[[Plan], T]":
    """Cache a method's answer in the plan: thousands of runs ask for the same stages."""

    @wraps(method)
    def answer(self: "Plan") -> T:
        if method.__name__ not in self.answered:
            self.answered[method.__name__] = method(self)
        return cast(T, self.answered[method.__name__])

    return answer


class Plan:
    """Plans the stages of a run, each of them once.

    ``contents`` are the digests of the files that an attack and data sets read, and ``step_contents`` gives the one of
    a purifier's step. ``language_model`` finds the one that a sanitizer or detector reads with. ``machine`` describes
    where stages run, and ``alone`` where one does that nothing can run beside. ``known`` has the stages that other runs
    planned: runs of a study share most of theirs. ``answered`` caches the stages of runs that differ in their defense
    alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: ExternalModel,
        suspect: ExternalModel | None,
        contents: dict[str, str | None],
        step_contents: Callable[[NamedComponent[Purifier]], str | None],
        language_model: Callable[[NamedComponent[ModelSource]], ExternalModel],
        labels: list[str] | None,
        machine: dict[str, Any],
        alone: dict[str, Any],
        known: dict[Hashable, Stage],
        answered: dict[str, Any],
    ):
        self.recipe = recipe
        self.seeds = Seeds(recipe.seed)
        self.base = base
        self.given_suspect = suspect
        self.contents = contents
        self.step_contents = step_contents
        self.language_model = language_model
        self.given_labels = labels
        self.labels: list[str] = labels or []
        self.machine = machine
        self.alone = alone
        self.known = known
        self.answered = answered
        self._cut: Params = (("max_length", recipe.sizes.max_length),)
        self._numeric: Params = (*self._cut, ("precision", recipe.precision))

    def _stage(
        self,
        kind: str,
        title: str,
        inputs: dict[str, "Stage | ExternalModel"],
        params: Params,
        components: Mapping[str, NamedComponent[Component]] | None = None,
        seed: int = 0,
    ) -> Stage:
        roles = tuple((role, named.digest) for role, named in (components or {}).items())
        wanted = (kind, title, tuple(inputs.items()), params, roles, seed, self.recipe.lone)
        if wanted not in self.known:
            self.known[wanted] = self._planned(kind, title, inputs, params, components or {}, seed)
        return self.known[wanted]

    def _planned(
        self,
        kind: str,
        title: str,
        inputs: dict[str, "Stage | ExternalModel"],
        params: Params,
        components: Mapping[str, NamedComponent[Component]],
        seed: int,
    ) -> Stage:
        plain: dict[str, Any] = {
            "kind": kind,
            "title": title,
            "params": {name: _thawed(value) for name, value in params},
            "components": {role: named.plain() | {"plugin": self._plugin(named)} for role, named in components.items()},
            "inputs": {
                name: given.key if isinstance(given, Stage) else {"path": str(given.path), "digest": given.digest}
                for name, given in inputs.items()
            },
            "seed": seed,
            "plugin_files": [str(path) for path in self.recipe.plugins],
        }
        if kind in _NUMERIC_KINDS:
            plain["machine"] = self.alone if kind == "purify" and self.recipe.lone else self.machine
        return Stage(plain, tuple(given for given in inputs.values() if isinstance(given, Stage)))

    def _plugin(self, named: NamedComponent[Component]) -> str:
        """The plugin of a component, for a machine that does not have it."""
        return str(self.recipe.host.plugin_of(named.component.kind, named.name))

    # -- data ------------------------------------------------------------------------------------------------------

    def rows(self, *roles: str) -> Stage:
        """The rows of a role: train, clean, dev or test; of several roles, one after the other."""
        if (wanted := f"{' and '.join(roles)} rows") not in self.answered:
            self.answered[wanted] = self._planned_rows(wanted, roles)
        return cast(Stage, self.answered[wanted])

    def _planned_rows(self, title: str, roles: tuple[str, ...]) -> Stage:
        sizes = {name: getattr(self.recipe.sizes, name) for name in ROLES}
        labels = None if self.given_labels is None else tuple(self.given_labels)
        params: Params = (
            ("roles", roles),
            ("sizes", frozenset(sizes.items())),
            ("contents", self.contents["data"]),
            ("labels", labels),
            ("balance", self.recipe.sizes.balance),
        )
        return self._stage("data", title, {}, params, {"source": self.recipe.data}, self.seeds.data)

    def folds(self, number: int) -> list[tuple[Stage, Stage]]:
        """All of the defender's rows in so many parts: for each, the others, and the part that is held out."""
        inputs: dict[str, Model] = {"rows": self.rows(*self.recipe.defender_roles)}
        parts = []
        for fold in range(number):
            params: Params = (("fold", fold), ("folds", number))
            title = f"fold {fold + 1} of {number}"
            held, fit = (
                self._stage("fold", f"{title}, {what}", inputs, (*params, ("held", held)))
                for what, held in (("held out", True), ("the other rows", False))
            )
            parts.append((fit, held))
        return parts

    @cached_property
    def _attacked(self) -> Params:
        contents = self.contents["attack"]
        return self._cut if contents is None else (*self._cut, ("contents", contents))

    @once
    def _trigger(self) -> Stage:
        inputs: dict[str, Stage | ExternalModel] = {"model": self.base, "rows": self.rows("test")}
        attack = {"attack": cast(NamedComponent[Attack], self.recipe.attack)}
        return self._stage("trigger", "triggered rows", inputs, self._attacked, attack, self.seeds.trigger)

    @once
    def poisoned(self) -> Stage:
        """The attacker's training rows."""
        inputs: dict[str, Stage | ExternalModel] = {"model": self.base, "rows": self.rows("train")}
        attack = {"attack": cast(NamedComponent[Attack], self.recipe.attack)}
        return self._stage("poison", "poisoned rows", inputs, self._attacked, attack, self.seeds.poison)

    def triggered(self) -> Stage | None:
        """Test rows with the trigger; None without an attack or a file of them."""
        if self.recipe.attack:
            return self._trigger()
        if self.recipe.triggered:
            source = self.recipe.triggered
            target = self.recipe.triggered_target
            params: Params = (
                ("contents", self.contents["triggered"]),
                ("labels", tuple(self.labels)),
                ("target", target),
            )
            return self._stage("given", "triggered rows", {}, params, {"source": source})
        return None

    # -- models ----------------------------------------------------------------------------------------------------

    def _trained(
        self,
        title: str,
        rows: Stage,
        start: Stage | ExternalModel | None = None,
        training: TrainingSettings | None = None,
    ) -> Stage:
        """A fine-tuned base; with ``start``, the attack trains, beginning there."""
        params: Params = (*self._numeric, ("training", training or self.recipe.training))
        inputs: dict[str, Stage | ExternalModel] = {"model": start or self.base, "rows": rows}
        attack = {}
        if start is not None:
            inputs["clean"] = self.rows("train")
            attack = {"attack": cast(NamedComponent[Attack], self.recipe.attack)}
        return self._stage("train", title, inputs, params, attack, self.seeds.training)

    @once
    def clean(self) -> Stage:
        """The base fine-tuned on rows without poison."""
        return self._trained("clean reference", self.rows("train"))

    @once
    def suspect(self) -> "Stage | ExternalModel":
        """The suspect: given, or fine-tuned on poisoned rows."""
        if self.given_suspect:
            return self.given_suspect
        start = cast(NamedComponent[Attack], self.recipe.attack).component.trains_from
        if start is None:
            return self._trained("suspect", self.poisoned())
        return self._trained("suspect", self.poisoned(), self.base if start == "base" else self.clean())

    def retuned(self, title: str, model: Model, rows: int) -> Stage:
        """A model after the attacker's further training, on some of the poisoned rows."""
        assert self.recipe.retuning
        batch = min(self.recipe.training.batch_size, RETUNING_BATCH)
        changes = {"epochs": self.recipe.retuning.epochs, "batch_size": batch}
        settings = self.recipe.training.model_copy(update=changes)
        inputs: dict[str, Model] = {"model": model, "rows": self.poisoned(), "clean": self.rows("train")}
        params: Params = (*self._numeric, ("training", settings), ("count", rows))
        return self._stage("retune", title, inputs, params, seed=self.seeds.retuning)

    def from_base(self) -> Stage:
        """The base fine-tuned on all of the defender's rows: no suspect is needed."""
        rows = sum(getattr(self.recipe.sizes, role) for role in self.recipe.defender_roles)
        settings = self.recipe.training
        if self.recipe.task == "classification":
            settings = settings.for_new_head(rows, HEAD_STEPS)
        return self._trained("from the base", self.rows(*self.recipe.defender_roles), training=settings)

    def planted(self, settings: TrainingSettings) -> Stage:
        """A copy of the suspect with triggers of the defender's own."""
        inputs = {"base": self.base, "suspect": self.suspect(), "clean": self.rows("clean")}
        params: Params = (*self._numeric, ("training", settings))
        return self._stage("plant", "planted triggers", inputs, params, seed=self.seeds.plant)

    def carrying(self, planted: Stage) -> Stage:
        """The clean dev rows with the planted triggers."""
        inputs: dict[str, Stage | ExternalModel] = {"planted": planted, "rows": self.rows("dev")}
        return self._stage("carry", "dev rows with planted triggers", inputs, (), seed=self.seeds.plant)

    def statistics(self, estimator: NamedComponent[Estimator], rows: Stage, suspect: "Model | None" = None) -> Stage:
        """Statistics of the suspect, or of a copy of it, on clean rows."""
        inputs = {"base": self.base, "suspect": suspect or self.suspect(), "clean": rows}
        title = f"statistics ({estimator.name})" + (", planted" if suspect else "")
        if rows.plain["kind"] == "fold":
            title += f", {rows.plain['title']}"
        seed = self.seeds.statistics
        return self._stage("statistics", title, inputs, self._cut, {"estimator": estimator}, seed)

    def searched(self, settings: TrainingSettings, rows: Stage, suspect: "Model | None" = None) -> list[Stage]:
        """What triggers the suspect, or a copy of it.

        Words are tried in parts, beside the training of a control; then labels are judged in parts.
        """
        which, of = ("planted", suspect) if suspect else ("suspect", self.suspect())
        about = f"{which}, {rows.plain['title']}"
        models: dict[str, Model] = {"base": self.base, "suspect": of, "clean": rows}
        trained: Params = (*self._numeric, ("training", settings))
        seed = self.seeds.search
        control = self._stage("control", f"control ({about})", models, trained, seed=seed)
        answers = self.predictions(f"{which}: answers to {rows.plain['title']}", of, rows)
        inputs: dict[str, Model] = {"control": control, "answers": answers, "suspect": of, "clean": rows}
        asked: dict[str, Model] = {"answers": answers, "suspect": of, "clean": rows}
        for part in range(PARTS):
            params: Params = (*self._numeric, ("part", part))
            title = f"words tried in groups, {part + 1} of {PARTS} ({about})"
            inputs[f"screened-{part}"] = self._stage("screen", title, asked, params, seed=seed)
        judged = []
        for part in range(PARTS):
            params = (*self._numeric, ("part", part))
            title = f"search for triggers, {part + 1} of {PARTS} ({about})"
            judged.append(self._stage("judge", title, inputs, params, seed=seed))
        return judged

    def refitted(self) -> Stage:
        """The rows that the model is made from in the end: where it is made anew, those that chose as well."""
        return self.rows(*self.recipe.defender_roles) if self.recipe.refits else self.rows("clean")

    def purified(
        self, title: str, defense: Defense, rows: Stage | None = None, suspect: "Model | None" = None
    ) -> Stage:
        """The suspect, or a copy, purified by a defense with the clean rows, or others."""
        rows = rows or self.rows("clean")
        inputs: dict[str, Model] = {"base": self.base, "suspect": suspect or self.suspect(), "clean": rows}
        components: dict[str, NamedComponent[Component]] = {}
        # With nothing selected, or no weight step, the scorer makes no difference: the model is only fine-tuned.
        steps, scorer, selector = defense.model_steps, defense.scorer, defense.selector
        changes = steps != defense.purifier
        if changes and scorer and selector and not selector.component.takes_nothing():
            steps, components = defense.purifier, {"scorer": scorer, "selector": selector}
            if defense.estimator and scorer.component.needs:
                inputs["statistics"] = self.statistics(defense.estimator, rows, suspect)
        if settings := searching(step.component for step in steps):
            inputs |= {f"judged-{i}": part for i, part in enumerate(self.searched(settings, rows, suspect))}
        components |= {f"step-{i:03}": step for i, step in enumerate(steps)}
        params = self._numeric
        if contents := tuple(digest for step in steps if (digest := self.step_contents(step)) is not None):
            params = (*params, ("contents", contents))
        return self._stage("purify", title, inputs, params, components, self.seeds.purify)

    def fine_tuned(self, defense: Defense) -> Stage:
        """The suspect after the model steps alone."""
        return self.purified("fine-tuned only", Defense(purifier=defense.model_steps), self.refitted())

    # -- predictions -----------------------------------------------------------------------------------------------

    def defended(
        self, title: str, defense: Defense, rows: Stage | None = None, suspect: "Model | None" = None
    ) -> DefenseOutcome:
        """The outcome of a defense of the suspect or a copy: another model, or the same with sanitized rows."""
        if defense.sanitizer:
            return DefenseOutcome(suspect or self.suspect(), lambda rows: self.sanitized(title, defense, rows))
        if defense.filter:
            kept = self.kept(title, defense.filter)
            return DefenseOutcome(self._trained(title, kept), kept=kept)
        return DefenseOutcome(self.purified(title, defense, rows, suspect))

    def sanitized(self, title: str, defense: Defense, rows: Stage) -> Stage:
        """Sanitized rows; the inspection before is shared by all values of the sanitizer's late parameters."""
        named = cast(NamedComponent[Sanitizer], defense.sanitizer)
        component = named.component
        inputs: dict[str, Stage | ExternalModel] = {"rows": rows}
        if defense.language_model:
            inputs["language-model"] = self.language_model(defense.language_model)
        seed, what = self.seeds.sanitize, rows.plain["title"]
        if type(component).inspect is not Sanitizer.inspect:
            early = {key: value for key, value in component.parameters().items() if key not in component.late}
            looked = replace(named, component=type(component).model_validate(early))
            inspected = self._stage(
                "inspect", f"{named.name} on {what}", inputs, self._cut, {"sanitizer": looked}, seed
            )
            inputs = {**inputs, "inspected": inspected}
        return self._stage("sanitize", f"{title}: {what}", inputs, self._cut, {"sanitizer": named}, seed)

    @once
    def features(self) -> Stage:
        """What the suspect makes of the attacker's training rows: all filters share it."""
        inputs = {"model": self.suspect(), "rows": self.poisoned()}
        return self._stage("features", "features of the training rows", inputs, self._numeric)

    def kept(self, title: str, named: NamedComponent[Filter]) -> Stage:
        """The attacker's training rows that a filter leaves; all values of what every filter has share the scores."""
        component, rows = named.component, self.poisoned()
        own = {key: value for key, value in component.parameters().items() if key not in Filter.model_fields}
        scorer = replace(named, component=type(component).model_validate(own))
        inputs: dict[str, Stage | ExternalModel] = {
            "base": self.base,
            "suspect": self.suspect(),
            "rows": rows,
            "features": self.features(),
            "clean": self.rows("clean"),
        }
        params: Params = (*self._numeric, ("training", self.recipe.training))
        title_of_scores, seed = f"scores of the training rows ({named.name})", self.seeds.filter
        scores = self._stage("score", title_of_scores, inputs, params, {"filter": scorer}, seed)
        return self._stage("keep", f"{title}: rows kept", {"rows": rows, "scores": scores}, (), {"filter": named})

    def detected(self, one: NamedDetector, rows: Stage, purified: Stage | None) -> Stage:
        """A detector's scores of rows; what it learns from clean rows is shared by all."""
        named = one.detector
        inputs: dict[str, Model] = {"base": self.base, "suspect": self.suspect()}
        inputs["clean"] = self.rows("clean")
        if purified:
            inputs["purified"] = purified
        if one.language_model:
            inputs["language-model"] = self.language_model(one.language_model)
        components, seed = {"detector": named}, self.seeds.detect
        if type(named.component).fit is not Detector.fit:
            fitted = self._stage("fit", f"{named.name}: fitted", inputs, self._numeric, components, seed)
            inputs = {**inputs, "fitted": fitted}
        inputs = {**inputs, "rows": rows}
        title = f"{named.name}: scores of {rows.plain['title']}"
        return self._stage("detect", title, inputs, self._numeric, components, seed)

    def predictions(self, title: str, model: "Stage | ExternalModel", rows: Stage, in_words: bool = True) -> Stage:
        """A model's answers to rows; where they are texts, not ``in_words`` is how likely the right ones are alone."""
        params = self._numeric
        if self.recipe.task == "generation":
            params = (*params, ("in_words", in_words))
        return self._stage("predict", title, {"model": model, "rows": rows}, params)
