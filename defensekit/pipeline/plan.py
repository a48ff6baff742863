"""Plans the graph of a run's stages, without computing anything."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from defensekit.components import Attack, Component, Detector, Estimator, Filter, Sanitizer
from defensekit.defense.purification import searching
from defensekit.defense.triggers.search import PARTS
from defensekit.pipeline.graph import ExternalModel, Model, Stage
from defensekit.pipeline.planner import Params, Planner, once
from defensekit.recipe.recipe import Defense, NamedComponent, NamedDetector
from defensekit.text import ROLES
from defensekit.training import TrainingSettings

# The least that the base fine-tuned anew is trained: with 768 rows MiniLM has an ACC of .782 after 48 steps of 32 rows,
# .800 after 96 of 16, .807 after 192. Trained less, it would flatter every defense.
HEAD_STEPS = 192
# Rows per step of the attacker's further training: with a few rows a larger batch leaves hardly a step.
RETUNING_BATCH = 8


@dataclass(frozen=True)
class DefenseOutcome:
    """The outcome of a defense: a model, what is done to rows before it reads them, the rows that it was trained on."""

    model: Model
    read: Callable[[Stage], Stage] = lambda rows: rows
    kept: Stage | None = None


class Plan(Planner):
    """Plans the stages of a run."""

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
        return self.stage("data", title, {}, params, {"source": self.recipe.data}, self.seeds.data)

    def folds(self, number: int) -> list[tuple[Stage, Stage]]:
        """All of the defender's rows in so many parts: for each, the others, and the part that is held out."""
        inputs: dict[str, Model] = {"rows": self.rows(*self.recipe.defender_roles)}
        parts = []
        for fold in range(number):
            params: Params = (("fold", fold), ("folds", number))
            title = f"fold {fold + 1} of {number}"
            held, fit = (
                self.stage("fold", f"{title}, {what}", inputs, (*params, ("held", held)))
                for what, held in (("held out", True), ("the other rows", False))
            )
            parts.append((fit, held))
        return parts

    def _contents_of_attack(self, params: Params) -> Params:
        contents = self.contents["attack"]
        return params if contents is None else (*params, ("contents", contents))

    @cached_property
    def _attacked(self) -> Params:
        return self._contents_of_attack(self.cut)

    @once
    def _trigger(self) -> Stage:
        attack = cast(NamedComponent[Attack], self.recipe.attack)
        inputs: dict[str, Stage | ExternalModel] = {"model": self.base, "rows": self.rows("test")}
        if attack.component.learns_from is not None:
            inputs["learnt"] = self._learnt()
        return self.stage("trigger", "triggered rows", inputs, self._attacked, {"attack": attack}, self.seeds.trigger)

    @once
    def poisoned(self) -> Stage:
        """The attacker's training rows."""
        attack = cast(NamedComponent[Attack], self.recipe.attack)
        inputs: dict[str, Stage | ExternalModel] = {"model": self.base, "rows": self.rows("train")}
        if attack.component.learns_from == "base":
            inputs["learnt"] = self._learnt()
        return self.stage("poison", "poisoned rows", inputs, self._attacked, {"attack": attack}, self.seeds.poison)

    @once
    def _learnt(self) -> Stage:
        """What the attack finds out with a model."""
        attack = cast(NamedComponent[Attack], self.recipe.attack)
        model = self.base if attack.component.learns_from == "base" else self.suspect()
        inputs: dict[str, Stage | ExternalModel] = {"model": model, "rows": self.rows("train")}
        params: Params = (*self._contents_of_attack(self.numeric), ("training", self.recipe.training))
        return self.stage("learn", "learnt by the attack", inputs, params, {"attack": attack}, self.seeds.training)

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
            return self.stage("given", "triggered rows", {}, params, {"source": source})
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
        params: Params = (*self.numeric, ("training", training or self.recipe.training))
        inputs: dict[str, Stage | ExternalModel] = {"model": start or self.base, "rows": rows}
        attack = {}
        if start is not None:
            inputs["clean"] = self.rows("train")
            attack = {"attack": cast(NamedComponent[Attack], self.recipe.attack)}
        return self.stage("train", title, inputs, params, attack, self.seeds.training)

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
        params: Params = (*self.numeric, ("training", settings), ("count", rows))
        return self.stage("retune", title, inputs, params, seed=self.seeds.retuning)

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
        params: Params = (*self.numeric, ("training", settings))
        return self.stage("plant", "planted triggers", inputs, params, seed=self.seeds.plant)

    def carrying(self, planted: Stage) -> Stage:
        """The clean dev rows with the planted triggers."""
        inputs: dict[str, Stage | ExternalModel] = {"planted": planted, "rows": self.rows("dev")}
        return self.stage("carry", "dev rows with planted triggers", inputs, self.cut, seed=self.seeds.plant)

    def statistics(self, estimator: NamedComponent[Estimator], rows: Stage, suspect: "Model | None" = None) -> Stage:
        """Statistics of the suspect, or of a copy of it, on clean rows."""
        inputs = {"base": self.base, "suspect": suspect or self.suspect(), "clean": rows}
        title = f"statistics ({estimator.name})" + (", planted" if suspect else "")
        if rows.plain["kind"] == "fold":
            title += f", {rows.plain['title']}"
        seed = self.seeds.statistics
        return self.stage("statistics", title, inputs, self.cut, {"estimator": estimator}, seed)

    def searched(self, settings: TrainingSettings, rows: Stage, suspect: "Model | None" = None) -> list[Stage]:
        """What triggers the suspect, or a copy of it.

        Words are tried in parts, beside the training of a control; then labels are judged in parts.
        """
        which, of = ("planted", suspect) if suspect else ("suspect", self.suspect())
        about = f"{which}, {rows.plain['title']}"
        models: dict[str, Model] = {"base": self.base, "suspect": of, "clean": rows}
        trained: Params = (*self.numeric, ("training", settings))
        seed = self.seeds.search
        control = self.stage("control", f"control ({about})", models, trained, seed=seed)
        answers = self.predictions(f"{which}: answers to {rows.plain['title']}", of, rows)
        inputs: dict[str, Model] = {"control": control, "answers": answers, "suspect": of, "clean": rows}
        asked: dict[str, Model] = {"answers": answers, "suspect": of, "clean": rows}
        for part in range(PARTS):
            params: Params = (*self.numeric, ("part", part))
            title = f"words tried in groups, {part + 1} of {PARTS} ({about})"
            inputs[f"screened-{part}"] = self.stage("screen", title, asked, params, seed=seed)
        judged = []
        for part in range(PARTS):
            params = (*self.numeric, ("part", part))
            title = f"search for triggers, {part + 1} of {PARTS} ({about})"
            judged.append(self.stage("judge", title, inputs, params, seed=seed))
        return judged

    def refitted(self) -> Stage:
        """The rows that the model is made from in the end: with `refit` dev rows as well."""
        return self.rows(*self.recipe.defender_roles) if self.recipe.refit else self.rows("clean")

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
        params = self.numeric
        if contents := tuple(digest for step in steps if (digest := self.step_contents(step)) is not None):
            params = (*params, ("contents", contents))
        return self.stage("purify", title, inputs, params, components, self.seeds.purify)

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
            inspected = self.stage("inspect", f"{named.name} on {what}", inputs, self.cut, {"sanitizer": looked}, seed)
            inputs = {**inputs, "inspected": inspected}
        return self.stage("sanitize", f"{title}: {what}", inputs, self.cut, {"sanitizer": named}, seed)

    @once
    def features(self) -> Stage:
        """What the suspect makes of the attacker's training rows: all filters share it."""
        inputs = {"model": self.suspect(), "rows": self.poisoned()}
        return self.stage("features", "features of the training rows", inputs, self.numeric)

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
        params: Params = (*self.numeric, ("training", self.recipe.training))
        title_of_scores, seed = f"scores of the training rows ({named.name})", self.seeds.filter
        scores = self.stage("score", title_of_scores, inputs, params, {"filter": scorer}, seed)
        return self.stage("keep", f"{title}: rows kept", {"rows": rows, "scores": scores}, (), {"filter": named})

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
            fitted = self.stage("fit", f"{named.name}: fitted", inputs, self.numeric, components, seed)
            inputs = {**inputs, "fitted": fitted}
        inputs = {**inputs, "rows": rows}
        title = f"{named.name}: scores of {rows.plain['title']}"
        return self.stage("detect", title, inputs, self.numeric, components, seed)

    def predictions(self, title: str, model: "Stage | ExternalModel", rows: Stage, in_words: bool = True) -> Stage:
        """A model's answers to rows; where they are texts, not ``in_words`` is how likely the right ones are alone."""
        params = self.numeric
        if self.recipe.task == "generation":
            params = (*params, ("in_words", in_words))
        return self.stage("predict", title, {"model": model, "rows": rows}, params)
