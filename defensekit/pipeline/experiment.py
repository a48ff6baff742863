"""The order of a run: which stages it requests, one after the other, and what follows from their artifacts.

A generator yields a `Request` for each stage and is sent the stage's artifact, or None where it is not known. A run
drives it with its runner, a dry run with what the store has, a study's plan with nothing.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

from defensekit.components import Choice, Rule, Trial, call_component
from defensekit.defense.triggers.planting import excess
from defensekit.pipeline.detection import RATES
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.plan import DefenseOutcome, Plan
from defensekit.pipeline.predictions import FEWEST, clean_trial, read_answers, read_predictions
from defensekit.pipeline.preflight import check_aim, check_rows, locating_errors
from defensekit.pipeline.store import Artifact
from defensekit.recipe.recipe import Defense, NamedDetector
from defensekit.recipe.vocabulary import retuned
from defensekit.result.schema import DEFENDED
from defensekit.text import ROLES, ROWS_OF, answer_of
from defensekit.utils.errors import PlacedError


@dataclass(frozen=True)
class Request:
    """A stage that a run asks for; None where it depends on a choice that is not known.

    ``recipe_key`` is the recipe's key that an error of the stage is about, if it is about one.
    """

    title: str
    kind: str
    stage: Stage | None
    recipe_key: str = ""


Requests = Generator[Request, Artifact | None, None]


@dataclass(frozen=True)
class Questions:
    """A model and the test rows it is asked about; ``predictions`` are the stages with its answers, by the rows."""

    defended: DefenseOutcome
    rows: dict[str, Stage]
    predictions: dict[str, Stage] = field(default_factory=dict)

    @property
    def rewritten(self) -> dict[str, Stage]:
        """The rows as a sanitizer leaves them; empty where none does."""
        read = {on: self.defended.read(rows) for on, rows in self.rows.items()}
        return {on: rows for on, rows in read.items() if rows is not self.rows[on]}


@dataclass
class Experiment:
    """What a run asks for, and what is known of it: fields are filled in while `requests` goes on.

    ``models`` are the models by the names that a result gives them, ``trials`` the values that the rule tried, in its
    order, with what it saw of each, ``scores`` the stages with each detector's scores, by the rows. ``message`` and
    ``warn`` take lines for the user. Where an answer is not known, ``certain`` leaves out what only may follow.
    """

    plan: Plan
    message: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    certain: bool = False
    models: dict[str, Questions] = field(default_factory=dict)
    trials: list[tuple[Trial, Questions]] = field(default_factory=list)
    suspect_trial: Trial | None = None
    choice: Choice | None = None
    scores: dict[str, dict[str, Stage]] = field(default_factory=dict)
    noted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        recipe = self.plan.recipe
        self.roles = [role for role in ROLES if recipe.attack or role != "train"]
        rows = [("plain", "triggered") if on == "both" else (on,) for on in (m.component.on for m in recipe.metrics)]
        self.task = recipe.task  # until the rows are read
        self.asked = list(dict.fromkeys(name for names in rows for name in names))

    def requests(self) -> Requests:
        """Everything that a run asks for."""
        yield from self.before_defense()
        yield from self.the_defense()

    def before_defense(self) -> Requests:
        """The stages before the defense: the same for all runs that differ only in their defense."""
        plan, recipe = self.plan, self.plan.recipe
        for role in self.roles:
            artifact = yield self._request(plan.rows(role), "data")
            if role == "test" and artifact:
                plan.labels, self.task = artifact.facts["labels"], artifact.facts.get("task", recipe.task)
                check_rows(plan, self.task)
                for note in artifact.facts["notes"]:
                    self.message(note)
        if plan.labels:
            self.check_target()
        if triggered := self.triggered:
            carrying = yield self._request(triggered, "attack" if recipe.attack else "triggered")
            if carrying and recipe.triggered and (task := carrying.facts.get("task", recipe.task)) != self.task:
                where = recipe.describe_location("triggered", "path")
                raise PlacedError(f"{where}: holds {ROWS_OF[task]}; expected {ROWS_OF[self.task]}, as the data are")
            self._doubt("test", carrying)
        if recipe.attack:
            self._doubt("train", (yield self._request(plan.poisoned(), "attack")))
            yield from self._measure("clean", "clean reference", DefenseOutcome(plan.clean()))
        yield from self._measure("suspect", "suspect", DefenseOutcome(plan.suspect()))

    def the_defense(self) -> Requests:
        """The choice of a value, the defense, and what is reported beside it."""
        plan, recipe = self.plan, self.plan.recipe
        value = yield from self._choose()
        anew = recipe.baselines and recipe.attack and recipe.defender_roles
        if anew:
            yield from self._measure("from-base", "from the base", DefenseOutcome(plan.from_base()))
        if recipe.baselines and recipe.defense.model_steps and recipe.defense.selector:
            yield from self._fine_tuned(value)
        for name, defense in recipe.compare.items():
            yield from self._defend(name, defense, value)
        yield from self._defend(DEFENDED[recipe.defense.stage], recipe.defense, value)
        if recipe.detectors:
            self._doubt_thresholds()
        for one in recipe.detectors:
            yield from self._detect(one, value)
        if recipe.retuning:
            for name in ("clean", *(["from-base"] if anew else []), DEFENDED[recipe.defense.stage]):
                for rows in recipe.retuning.rows:
                    yield from self._retune(name, rows)

    @cached_property
    def triggered(self) -> Stage | None:
        """The triggered test rows; None for a recipe without any."""
        return locating_errors(self.plan.recipe, "triggered", self.plan.triggered)

    @cached_property
    def test_rows(self) -> dict[str, Stage]:
        """The test rows that some metric asks a model about, by how they are called."""
        rows = {"plain": self.plan.rows("test"), "triggered": self.triggered}
        return {on: stage for on in self.asked if (stage := rows[on]) is not None}

    def check_target(self) -> int | str | None:
        """The answer that the attack aims at: a label's number, or a text.

        None for a bias, and where nothing is known of an attack.

        Raises:
            UsageError: the data have no such label.
        """
        return check_aim(self.plan.recipe, lambda aim: answer_of(aim, self.plan.labels))

    def _doubt(self, which: str, rows: Artifact | None) -> None:
        """Warn of rows that can't carry the trigger, or not all of it."""
        facts = rows.facts if rows else {}
        if facts.get("left_out"):
            counts = f"{facts['left_out']} of {facts['left_out'] + facts['rows']} test rows"
            self.warn(f"{counts} can't carry the trigger and are left out")
        if facts.get("unread"):
            counts = f"{facts['unread']} of {facts['changed']} {which} rows"
            self.warn(f"the tokenizer reads {counts} as if they had no trigger: it strips all that was changed")
        if facts.get("cut"):
            counts = f"{facts['cut']} of {facts['changed']} {which} rows"
            self.warn(f"truncation cuts into the trigger of {counts}; data.max_length is too small")
        if facts.get("cut_responses"):
            counts = f"{facts['cut_responses']} of {facts['rows']} responses"
            self.warn(f"{counts} are longer than data.max_length leaves room for: they are learnt without their end")

    def _doubt_labels(self, suspect: Artifact) -> None:
        """Warn of a given suspect that answers no better than chance."""
        trial, labels = clean_trial(read_answers(suspect.files), 0.0), self.plan.labels
        if self.task == "classification" and trial.rows >= FEWEST and trial.accuracy <= (chance := 1 / len(labels)) < 1:
            self.warn(
                f"the suspect answers {trial.accuracy:.1%} of the test rows right, no more than chance "
                f"({chance:.1%}): their labels may be in another order than its own, or they are of another task"
            )

    def _request(self, stage: Stage, recipe_key: str = "") -> Request:
        return Request(stage.plain["title"], stage.plain["kind"], stage, recipe_key)

    def _measure(self, name: str, title: str, defended: DefenseOutcome, recipe_key: str = "") -> Requests:
        """What every metric of a model needs; an error is about the ``recipe_key``, if one is given."""
        self.models[name] = yield from self._ask(title, defended, self.test_rows, recipe_key)

    def _ask(
        self, title: str, defended: DefenseOutcome, rows: dict[str, Stage], recipe_key: str = ""
    ) -> Generator[Request, Artifact | None, Questions]:
        questions = Questions(defended, rows)
        for on, row_stage in rows.items():
            stage = self.plan.predictions(f"{title}: answers to {on} rows", defended.model, defended.read(row_stage))
            questions.predictions[on] = stage
            artifact = yield self._request(stage, recipe_key)
            if artifact and self.plan.labels and on == "plain" and defended.model is self.plan.given_suspect:
                self._doubt_labels(artifact)
            note = artifact and artifact.facts.get("note")
            if note and note not in self.noted:
                self.noted.add(note)
                self.message(note)
        return questions

    def _defend(self, name: str, defense: Defense, value: float | None) -> Requests:
        """A defense at the chosen value; if that is unknown, the stages that do not depend on it."""
        rule, rows = self.plan.recipe.choose, self.plan.refitted()
        if rule is None:
            self.models[name] = yield from self._ask(name, self.plan.defended(name, defense, rows), self.test_rows)
        elif value is not None:
            chosen = defense.at(rule.component.over, value)
            self.models[name] = yield from self._ask(name, self.plan.defended(name, chosen, rows), self.test_rows)
        else:
            yield from self._unknown(name, defense, rule.component)

    def _fine_tuned(self, value: float | None) -> Requests:
        """The suspect after the model steps alone, at the chosen value where it may be theirs; else a title alone."""
        defense, rule = self.plan.recipe.defense, self.plan.recipe.choose
        if rule and rule.component.over.startswith("purifier."):
            if value is None:
                if not self.certain:
                    yield Request("fine-tuned only", "purify", None)
                    for on in self.test_rows:
                        yield Request(f"fine-tuned: answers to {on} rows", "predict", None)
                return
            defense = defense.at(rule.component.over, value)
        yield from self._measure("fine-tuned", "fine-tuned", DefenseOutcome(self.plan.fine_tuned(defense)))

    def _unknown(self, name: str, defense: Defense, rule: Rule) -> Requests:
        """The stages that values share; the others have a title alone."""
        if self.certain:
            return
        refit = self.plan.recipe.refit
        defended = self.plan.defended(name, defense.at(rule.over, rule.values[-1]), self.plan.refitted())
        changed = [cast(Stage, defended.model)]
        if defense.sanitizer:
            changed = [defended.read(rows) for rows in self.test_rows.values()]
        if defended.kept:
            changed = [defended.kept, *changed]
        for stage in changed:
            for needed in stage.inputs:
                if needed not in changed:
                    yield self._request(needed)
        if name in DEFENDED.values() and not refit:
            return  # it is one of the trials
        for stage in changed:
            yield Request(stage.plain["title"], stage.plain["kind"], None)
        for on in self.test_rows:
            yield Request(f"{name}: answers to {on} rows", "predict", None)

    def _retune(self, name: str, rows: int) -> Requests:
        """A model after the attacker's further training; the stages have a title alone where the model is unknown."""
        title = retuned(name, rows)
        if name not in self.models:
            yield Request(title, "retune", None)
            for on in self.test_rows:
                yield Request(f"{title}: answers to {on} rows", "predict", None)
            return
        # The model itself is not asked for: a study removes it, and another that has its answers needs no more.
        stage = self.plan.retuned(title, self.models[name].defended.model, rows)
        yield from self._measure(title, title, DefenseOutcome(stage), "retuning.rows")

    # -- detectors -------------------------------------------------------------------------------------------------

    @cached_property
    def scored_rows(self) -> dict[str, Stage]:
        """The rows that detectors score, by how they are called: thresholds are set on the ``held-out`` clean rows."""
        rows = {"held-out": self.plan.rows("dev"), "plain": self.plan.rows("test"), "triggered": self.triggered}
        return {on: stage for on, stage in rows.items() if stage is not None}

    def _doubt_thresholds(self) -> None:
        """Warn of held-out rows that are too few for a false-positive rate: a threshold is then their highest score."""
        rows = self.plan.recipe.sizes.dev
        if blind := [f"{rate:.0%}" for rate in RATES if rate * rows < 1]:
            self.warn(f"{rows} dev rows are too few for a threshold at {' or '.join(blind)} false positives")

    def _detect(self, one: NamedDetector, value: float | None) -> Requests:
        """The scores of a detector; they have a title alone where the purified model depends on an unknown choice."""
        plan, rule, defense = self.plan, self.plan.recipe.choose, self.plan.recipe.defense
        scores = self.scores.setdefault(one.detector.name, {})
        purified = None
        if one.detector.component.reads_purified:
            if rule and value is None:
                for rows in self.scored_rows.values():
                    yield Request(f"{one.detector.name}: scores of {rows.plain['title']}", "detect", None)
                return
            # A model that was made anew from the dev rows as well would know the rows that thresholds are set on.
            over = rule.component.over if rule else ""
            if value is None:
                purified = plan.purified("without dev rows" if plan.recipe.refit else DEFENDED["weights"], defense)
            else:
                purified = plan.purified(_trial_title(over, value), defense.at(over, value))
        for on, rows in self.scored_rows.items():
            scores[on] = plan.detected(one, rows, purified)
            yield self._request(scores[on])

    # -- the choice ------------------------------------------------------------------------------------------------

    def _choose(self) -> Generator[Request, Artifact | None, float | None]:
        """The value that the rule takes, shown clean dev rows alone; None where some of what it looks at is unknown."""
        named, plan, defense = self.plan.recipe.choose, self.plan, self.plan.recipe.defense
        if named is None:
            return None
        rule = named.component
        dev = plan.rows(*plan.recipe.defender_roles) if rule.folds else plan.rows("dev")
        nothing = defense.nothing(rule.over)
        suspect = yield from self._dev_trial("suspect", DefenseOutcome(plan.suspect()), nothing, dev)
        if settings := rule.planting():
            copy = plan.planted(settings)
            planted = yield from self._left("planted triggers", copy, DefenseOutcome(copy))
            suspect = replace(suspect, planted=planted) if suspect and planted else None
        self.suspect_trial = suspect
        seen: list[Trial] = []
        while (value := call_component(rule, rule.propose, seen)) is not None:
            if (trial := (yield from self._try(rule, value))) is None:
                break
            seen.append(trial)
        if value is None and suspect:
            self.choice = call_component(rule, rule.choose, seen, suspect)
            if self.choice.warning:
                self.warn(self.choice.warning)
            return self.choice.value
        if not self.certain or type(rule).propose is Rule.propose:
            for candidate in dict.fromkeys((0.0, *rule.values)):
                yield from self._try(rule, candidate)
        return None

    def _try(self, rule: Rule, value: float) -> Generator[Request, Artifact | None, Trial | None]:
        title = _trial_title(rule.over, value)
        plan, defense = self.plan, self.plan.recipe.defense.at(rule.over, value)
        if rule.folds:
            trial, defended = yield from self._cross_validated(title, defense, value, rule.folds)
        else:
            defended = plan.defended(title, defense)
            trial = yield from self._dev_trial(title, defended, value, plan.rows("dev"))
        if settings := rule.planting():
            copy = plan.planted(settings)
            title_of = f"{title}, planted"
            planted = yield from self._left(title_of, copy, plan.defended(title_of, defense, suspect=copy))
            trial = replace(trial, planted=planted) if trial and planted else None
        test_rows = self.test_rows if plan.recipe.baselines else {}
        questions = yield from self._ask(title, defended, test_rows)
        if trial:
            self.trials.append((trial, questions))
        return trial

    def _cross_validated(
        self, title: str, defense: Defense, value: float, folds: int
    ) -> Generator[Request, Artifact | None, tuple[Trial | None, DefenseOutcome]]:
        """Accuracy on all clean rows, each answered by the model that was made without its fold; the first model."""
        trials, models = [], []
        for number, (fit, held) in enumerate(self.plan.folds(folds), 1):
            title_of = f"{title}, fold {number} of {folds}"
            models.append(self.plan.defended(title_of, defense, fit))
            trials.append((yield from self._dev_trial(title_of, models[-1], value, held)))
        known = [trial for trial in trials if trial]
        if len(known) < folds:
            return None, models[0]
        rows = sum(trial.rows for trial in known)
        return Trial(value, sum(trial.accuracy * trial.rows for trial in known) / rows, rows), models[0]

    def _left(
        self, title: str, copy: Stage, defended: DefenseOutcome
    ) -> Generator[Request, Artifact | None, dict[str, float] | None]:
        """What the triggers of a planted copy turn after a defense of it; None where that is unknown."""
        plan, rows = self.plan, self.plan.carrying(copy)
        carried = yield self._request(rows)
        answers = []
        for on, stage in (("dev rows", plan.rows("dev")), (rows.plain["title"], rows)):
            asked = plan.predictions(f"{title}: answers to {on}", defended.model, defended.read(stage))
            answers.append((yield self._request(asked)))
        plain, carrying = (artifact and read_predictions(artifact.files) for artifact in answers)
        return excess(carried.facts["triggers"], plain, carrying) if carried and plain and carrying else None

    def _dev_trial(
        self, title: str, defended: DefenseOutcome, value: float, dev: Stage
    ) -> Generator[Request, Artifact | None, Trial | None]:
        """Accuracy on the clean rows that choose; a rule sees nothing else."""
        title = f"{title}: answers to {dev.plain['title']}"
        stage = self.plan.predictions(title, defended.model, defended.read(dev), in_words=False)
        artifact = yield self._request(stage)
        return clean_trial(read_answers(artifact.files), value) if artifact else None


def _trial_title(over: str, value: float) -> str:
    # For people; %g would give two values beyond six digits one title.
    return f"trial {over.rpartition('.')[2]} {value:.15g}"
