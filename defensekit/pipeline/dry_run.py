"""What a run would do: its stages, and which of them are there already. Nothing is computed."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from defensekit.components import Metric, Planned, Rule, Trial, blame
from defensekit.pipeline.plan import Defended, External, Plan, Stage, trial_title
from defensekit.pipeline.predictions import clean_trial, read_predictions
from defensekit.pipeline.preflight import at, survey
from defensekit.pipeline.store import Artifact, Damaged, Store
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.recipe import Defense, Recipe
from defensekit.result.schema import DEFENDED
from defensekit.text import ROLES


def preview(
    recipe: str | Path | Recipe, workspace: str | Path = "workspace", say: Callable[[str], None] = lambda text: None
) -> list[Planned]:
    """The stages of a run in a workspace, in the order they would be made.

    Models and data that the recipe names are looked at, and fetched where they are not here yet.

    Raises:
        UsageError: a model or the data are not what was expected.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return stages_ahead(survey(loaded, say), Store(Path(workspace) / "store"))


def stages_ahead(plan: Plan, store: Store) -> list[Planned]:
    """The stages of a plan; those that hang on a choice that can't be known yet have no key."""
    needs = Needs(plan, store)
    found: dict[str, Planned] = {}

    def visit(stage: Stage) -> None:
        """A stage, after the inputs that it needs where it is not there itself."""
        if stage.key in found:
            return
        artifact = needs.there(stage)
        if artifact is None:
            for needed in stage.inputs:
                visit(needed)
        seconds = artifact.seconds if artifact else None
        found[stage.key] = Planned(stage.plain["title"], stage.plain["kind"], stage.key, seconds)

    for stage in needs.stages:
        visit(stage)
    return [*found.values(), *needs.unknown]


class Needs:
    """What a run asks for, in its order: ``stages``, without what they are made from, and what can't be known yet.

    Without a store nothing is looked at: every choice is then unknown.
    """

    def __init__(self, plan: Plan, store: Store | None) -> None:
        self.plan = plan
        self.store = store
        self.unknown: list[Planned] = []
        recipe = plan.recipe
        if test := self.there(plan.rows("test")):
            plan.labels = test.facts["labels"]
        self.triggered = at(recipe, "triggered", plan.triggered)
        wanted = {cast(Metric, named.component).on for named in recipe.metrics}
        self.kinds_of_rows = sorted(wanted if self.triggered else wanted - {"triggered"})
        self.stages: list[Stage] = []
        if store or not (before := plan.answered.get("needs before the defense")):
            self.before()
            before = plan.answered["needs before the defense"] = tuple(self.stages)
        self.stages = [*before]
        value = self.choice()
        if recipe.defense.model_steps and recipe.defense.selector:
            self.measure("fine-tuned", plan.fine_tuned(recipe.defense))
        for name, other in recipe.compare.items():
            self.defense(name, other, value)
        self.defense(DEFENDED[recipe.defense.stage], recipe.defense, value)

    def before(self) -> None:
        """What there is before a defense: the same for every run that differs in its defense alone."""
        plan, recipe = self.plan, self.plan.recipe
        self.stages += [plan.rows(role) for role in ROLES if recipe.attack or role != "train"]
        self.stages += [self.triggered] if self.triggered else []
        if recipe.attack:
            self.stages.append(plan.poisoned())
            self.measure("clean reference", plan.clean())
        self.measure("suspect", plan.suspect())

    def there(self, stage: Stage) -> Artifact | None:
        try:
            return self.store.open(stage.key) if self.store and self.store.has(stage.key) else None
        except Damaged:
            return None

    def measure(self, title: str, model: Stage | External) -> None:
        """What every metric of a model needs."""
        self.defended(title, Defended(model))

    def defended(self, title: str, defended: Defended) -> None:
        """What every metric of what a defense leaves needs."""
        for on in self.kinds_of_rows:
            rows = defended.read(cast(Stage, self.triggered if on == "triggered" else self.plan.rows("test")))
            self.stages.append(self.plan.predictions(f"{title}: answers to {on} rows", defended.model, rows))

    def defense(self, title: str, defense: Defense, value: float | None) -> None:
        """What a defense leaves and its answers, at a chosen value where one is chosen."""
        rule = self.plan.recipe.choose
        if rule is None or value is not None:
            at_value = defense.at(cast(Rule, rule.component).over, value) if rule and value is not None else defense
            self.defended(title, self.plan.defended(title, at_value))
            return
        made = cast(Rule, rule.component)
        defended = self.plan.defended(title, defense.at(made.over, made.values[-1]))
        rows = {"plain": self.plan.rows("test"), "triggered": cast(Stage, self.triggered)}
        asked = [defended.read(rows[on]) for on in self.kinds_of_rows]
        changed = asked if defense.sanitizer else [cast(Stage, defended.model)]
        self.stages += [needed for stage in changed for needed in stage.inputs]
        if title in DEFENDED.values():
            return  # it is one of the trials
        self.unknown += [Planned(stage.plain["title"], stage.plain["kind"], None, None) for stage in changed]
        for on in self.kinds_of_rows:
            self.unknown.append(Planned(f"{title}: answers to {on} rows", "predict", None, None))

    def choice(self) -> float | None:
        """Ask for every trial; the value that the rule takes, where everything it looks at is there already."""
        named = self.plan.recipe.choose
        if named is None:
            return None
        rule = cast(Rule, named.component)
        nothing = self.plan.recipe.defense.nothing(rule.over)
        suspect = self.trial("suspect", Defended(self.plan.suspect()), nothing)
        trials = {value: self.try_value(rule, value) for value in dict.fromkeys((0.0, *rule.values))}
        seen: list[Trial] = []
        while (value := blame(rule, rule.propose, seen)) is not None:
            if (trial := trials[value] if value in trials else self.try_value(rule, value)) is None:
                return None
            seen.append(trial)
        return blame(rule, rule.choose, seen, suspect).value if suspect else None

    def try_value(self, rule: Rule, value: float) -> Trial | None:
        title = trial_title(rule.over, value)
        defended = self.plan.defended(title, self.plan.recipe.defense.at(rule.over, value))
        trial = self.trial(title, defended, value)
        self.defended(title, defended)
        return trial

    def trial(self, title: str, defended: Defended, value: float) -> Trial | None:
        rows = defended.read(self.plan.rows("dev"))
        stage = self.plan.predictions(f"{title}: answers to dev rows", defended.model, rows)
        self.stages.append(stage)
        artifact = self.there(stage)
        return clean_trial(read_predictions(artifact.files), value) if artifact else None
