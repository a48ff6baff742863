"""A run: from a recipe to a result."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

from defensekit.components import Attack, Executor, Measured, Metric, Observer, Predictions, Rule, Trial, blame
from defensekit.host.registry import Plugin
from defensekit.pipeline import run_folder
from defensekit.pipeline.dry_run import stages_ahead
from defensekit.pipeline.identity import identified, identity, parts
from defensekit.pipeline.plan import Defended, External, Plan, Stage, trial_title
from defensekit.pipeline.predictions import clean_trial, read_predictions
from defensekit.pipeline.preflight import at, survey
from defensekit.pipeline.runner import Runner
from defensekit.pipeline.store import DISTRIBUTIONS, Artifact, Store
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.recipe import Defense, Recipe
from defensekit.result.schema import (
    DEFENDED,
    Chosen,
    Environment,
    Example,
    ModelResult,
    PluginRecord,
    Reset,
    Result,
    Sanitized,
    TrialResult,
)
from defensekit.text import ROLES, ROWS, Row, label_number, read_rows
from defensekit.training import native_precision
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.logging import log, logged
from defensekit.utils.seeds import derive_seed

Made = TypeVar("Made")

EXAMPLES = 10  # triggered rows that a result shows
ORACLE = "oracle-"  # begins the names of components that look at what a defender can't see


def run(
    recipe: str | Path | Recipe,
    workspace: str | Path = "workspace",
    observers: Sequence[Observer] = (),
    doubts: Callable[[Path, Path], list[str]] | None = None,
) -> Result:
    """Run a recipe: every stage that the workspace does not hold yet, then the result and the purified model.

    Args:
        recipe: a YAML file, or what `load_recipe` made of one.
        workspace: the folder of the store and of the runs' folders.
        observers: who watches.
        doubts: what there is to warn of, before any work, of the folders of a base and a given suspect.

    Raises:
        UsageError: the recipe, the data or a model is not what was expected; nothing was trained.
        DefenseKitError: a stage failed; what was finished before is kept and reused.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    place = Path(workspace)
    folder = run_folder.folder_of(loaded, place).absolute()
    try:
        with logged(folder / "run.log"), _here(loaded, place, [run_folder.Log(), *observers]) as whole:
            if doubts and whole.plan.given_suspect:
                for text in doubts(whole.plan.base.path, whole.plan.given_suspect.path):
                    whole.warn(text)
            result = whole.result(folder)
            run_folder.write(result, whole.purified, lambda stage: whole.runner.make(stage).files)
            log.info("done: %s", result.summary)
            whole.runner.tell("run_finished", result.model_dump())
            return result
    except OSError as error:
        raise DefenseKitError(f"{error.strerror or error}: {error.filename or place}") from error


def run_attack(
    recipe: str | Path | Recipe, workspace: str | Path = "workspace", observers: Sequence[Observer] = ()
) -> dict[str, ModelResult]:
    """Run a recipe up to its defense: the clean reference (of an attack's recipe) and the suspect, measured.

    Every stage is one of `run`'s, and in the workspace for it.

    Raises:
        UsageError, DefenseKitError: as `run`.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    with _here(loaded, Path(workspace), observers) as whole:
        _, _, models = whole.before()
    return models


@contextmanager
def _here(recipe: Recipe, workspace: Path, observers: Sequence[Observer]) -> "Iterator[Run]":
    """A run on its own, with workers and observers of its own."""
    watching = [*observers, *(cast(Observer, named.component) for named in recipe.observers)]
    store = Store(workspace / "store")
    with cast(Executor, recipe.executor.component).open() as workers:
        runner = Runner(store, workers, watching)
        runner.tell("run_started", recipe.resolved())
        try:
            store.sweep()
            plan = survey(recipe, partial(runner.tell, "message"))
            runner.tell("planned", stages_ahead(plan, store))
            yield Run(plan, runner)
        except Exception as error:
            runner.tell("run_failed", str(error))
            raise


class Run:
    """One run of a recipe: its plan, and what makes its stages."""

    def __init__(self, plan: Plan, runner: Runner) -> None:
        self.started = time.perf_counter()
        self.recipe = plan.recipe
        self.plan = plan
        self.runner = runner
        self.warnings: list[str] = []
        self.answers: dict[str, Any] = {}  # what models answer to triggered rows, by the models' titles
        for problem in self.recipe.host.problems:
            self.warn(str(problem))
        if self.recipe.precision == "bfloat16" != native_precision():
            self.warn("this machine emulates bfloat16, many times slower than float32; `precision: auto` avoids that")

    def result(self, folder: Path, examples: int = EXAMPLES) -> Result:
        """Run every stage that is not there yet. ``folder`` is where the result will lie."""
        recipe, plan = self.recipe, self.plan
        data, attack, models = self.before()
        defense, chosen, curve = self.choose()
        if defense.model_steps and defense.selector:
            models["fine-tuned"] = self.measure("fine-tuned", plan.fine_tuned(defense))
        for name, other in recipe.compare.items():
            at_value = other.at(chosen.over, chosen.value) if chosen else other
            models[name] = self.defend(name, plan.defended(name, at_value))
        ended, defended = DEFENDED[defense.stage], plan.defended(DEFENDED[defense.stage], defense)
        models[ended] = self.defend(ended, defended)
        self.purified = None if defense.sanitizer else cast(Stage, defended.model)
        floor = models["clean"].metrics.get("asr") if "clean" in models else None
        facts = identified(plan)
        return Result(
            name=recipe.name,
            identity=identity(facts),
            identified=facts,
            oracle=sorted({named.name for _, named in parts(recipe) if named.name.startswith(ORACLE)}),
            summary={
                name: {**{key: measured.value for key, measured in model.metrics.items()}, "seconds": model.seconds}
                for name, model in models.items()
            },
            models=models,
            asr_floor=floor.value if floor else None,
            clean_budget=(0 if defense.sanitizer else recipe.sizes.clean) + (recipe.sizes.dev if recipe.choose else 0),
            chosen=chosen,
            curve=curve,
            examples=self.examples(examples, ended, defended),
            attack=attack,
            data=data,
            statistics=models[ended].statistics,
            warnings=self.warnings,
            recipe=recipe.resolved(),
            stages=list(self.runner.made.values()),
            environment=_environment(plan),
            seconds=round(time.perf_counter() - self.started, 2),
            folder=str(folder),
        )

    def before(self) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, ModelResult]]:
        """What there is before a defense: what is known of the rows and of the attack, and the models measured."""
        data = self.rows()
        self.triggered = at(self.recipe, "triggered", self.plan.triggered)
        attack = self.attack()
        self.target = attack["target"] if attack else None
        models: dict[str, ModelResult] = {}
        if self.recipe.attack:
            models["clean"] = self.measure("clean reference", self.plan.clean())
        models["suspect"] = self.measure("suspect", self.plan.suspect())
        return data, attack, models

    def warn(self, text: str) -> None:
        """A warning for the user, kept in the result."""
        self.warnings.append(text)
        self.runner.tell("warning", text)

    # -- rows ------------------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, Any]:
        """Make every role's rows; learn the labels."""
        roles = [role for role in ROLES if self.recipe.attack or role != "train"]
        facts = {role: at(self.recipe, "data", partial(self.runner.make, self.plan.rows(role))).facts for role in roles}
        self.plan.labels = facts["test"]["labels"]
        for note in facts["test"]["notes"]:
            self.runner.tell("message", note)
        return {"labels": self.plan.labels, "rows": {role: found["rows"] for role, found in facts.items()}}

    def attack(self) -> dict[str, Any] | None:
        """Make the attacker's rows, or read the given ones; what is known about them."""
        if self.triggered is None:
            return None
        recipe, triggered = self.recipe, self.triggered
        key = "attack" if recipe.attack else "triggered"
        aim = cast(Attack, recipe.attack.component).aim() if recipe.attack else recipe.triggered_target
        found: dict[str, Any] = {"target": None}
        if aim is not None:
            found["target"] = at(self.recipe, f"{key}.target", lambda: label_number(aim, self.plan.labels))
        stages = {"test": triggered}
        if recipe.attack:
            found["name"] = recipe.attack.name
            stages["train"] = self.plan.poisoned()
        for which, stage in stages.items():
            facts = at(self.recipe, key, partial(self.runner.make, stage)).facts
            found[which] = {name: value for name, value in facts.items() if name not in ("labels", "target")}
            if facts.get("left_out"):
                self.warn(f"{facts['left_out']} test rows can't carry the trigger and are left out")
            if facts.get("cut"):
                counts = f"{facts['cut']} of {facts['changed']} {which} rows"
                self.warn(f"truncation cuts into the trigger of {counts}; data.max_length is too small")
        return found

    # -- models ----------------------------------------------------------------------------------------------------

    def measure(self, title: str, model: Stage | External) -> ModelResult:
        """Every metric of a model."""
        return self.defend(title, Defended(model))

    def defend(self, title: str, defended: Defended) -> ModelResult:
        """Every metric of what a defense left."""
        found, about = {}, None
        read: dict[str, Artifact] = {}
        for named in self.recipe.metrics:
            metric = cast(Metric, named.component)
            rows = self.plan.rows("test") if metric.on == "plain" else self.triggered
            if rows is not None:
                asked = defended.read(rows)
                stage = self.plan.predictions(f"{title}: answers to {metric.on} rows", defended.model, asked)
                artifact = self.runner.make(stage)
                predictions = self.predictions(artifact)
                found[named.name] = blame(metric, metric.measure, predictions)
                if metric.on == "triggered":
                    self.answers[title] = predictions.answers()
                about = artifact.facts["model"]
                if asked is not rows:
                    read[metric.on] = self.runner.make(asked)
        return _sanitized(read, found) if read else _model(about, found)

    def examples(self, count: int, ended: str, defended: Defended) -> list[Example]:
        """The first triggered test rows, with what is answered before the defense and after it."""
        if self.triggered is None or not self.answers or not count:
            return []
        plain = {row.id: row for row in self._read(self.plan.rows("test"))} if self.recipe.attack else {}
        asked = defended.read(self.triggered)
        read = self._read(asked) if asked is not self.triggered else None
        found = []
        for i, row in enumerate(self._read(self.triggered)[:count]):
            before = plain.get(row.id)
            found.append(
                Example(
                    text=row.text,
                    pair=row.pair,
                    plain=before.text if before else None,
                    plain_pair=before.pair if before else None,
                    label=self.plan.labels[row.label],
                    answers={title: self.plan.labels[self.answers[title][i]] for title in ("suspect", ended)},
                    sanitized=read[i].text if read else None,
                    sanitized_pair=read[i].pair if read else None,
                )
            )
        return found

    def _read(self, stage: Stage) -> list[Row]:
        return read_rows(self.runner.make(stage).files / ROWS)

    def trial(self, title: str, defended: Defended, value: float) -> Trial:
        """Accuracy on the clean dev rows: all that a rule ever sees."""
        dev = defended.read(self.plan.rows("dev"))
        stage = self.plan.predictions(f"{title}: answers to dev rows", defended.model, dev)
        return clean_trial(read_predictions(self.runner.make(stage).files), value)

    def predictions(self, artifact: Artifact) -> Predictions:
        """Stored answers, as metrics get them."""
        seed = derive_seed(self.recipe.seed, "metrics")
        return read_predictions(artifact.files, self.target, tuple(self.plan.labels), seed)

    def choose(self) -> tuple[Defense, Chosen | None, list[TrialResult]]:
        """Let the rule try values and take one; the metrics of every trial are for the reader alone."""
        recipe, plan, curve = self.recipe, self.plan, []
        if recipe.choose is None:
            return recipe.defense, None, []
        rule = cast(Rule, recipe.choose.component)
        suspect = self.trial("suspect", Defended(plan.suspect()), recipe.defense.nothing(rule.over))
        if plan.given_suspect and suspect.accuracy <= (chance := 1 / len(plan.labels)) < 1:
            self.warn(
                f"the suspect answers {suspect.accuracy:.1%} of the dev rows right, no more than chance "
                f"({chance:.1%}): their labels may be in another order than its own, or they are of another task"
            )
        seen: list[Trial] = []
        while (value := blame(rule, rule.propose, seen)) is not None:
            title = trial_title(rule.over, value)
            defended = plan.defended(title, recipe.defense.at(rule.over, value))
            seen.append(self.trial(title, defended, value))
            metrics = self.defend(title, defended).metrics
            curve.append(TrialResult(value=value, dev_accuracy=seen[-1].accuracy, metrics=metrics))
        choice = blame(rule, rule.choose, seen, suspect)
        if choice.warning:
            self.warn(choice.warning)
        chosen = Chosen(
            rule=recipe.choose.name,
            over=rule.over,
            value=choice.value,
            reason=choice.reason,
            suspect_dev_accuracy=suspect.accuracy,
            lower_does_more=recipe.defense.lower_does_more(rule.over),
        )
        return recipe.defense.at(rule.over, choice.value), chosen, curve


def _model(about: dict[str, Any] | None, metrics: dict[str, Measured]) -> ModelResult:
    """A model's metrics with what its predictions remember of it."""
    if about is None:
        return ModelResult(metrics=metrics, seconds=None)
    facts, seconds = about["facts"], about["seconds"]
    statistics = facts.get("statistics")
    if statistics:
        seconds += statistics["seconds"]
        estimator = statistics["components"]["estimator"]["name"]
        statistics = {"estimator": estimator, "seconds": statistics["seconds"], **statistics["facts"]}
    parts = {
        role: {"name": c["name"], **c["parameters"]} for role, c in about["components"].items() if role != "attack"
    }
    reset = Reset(**{key: facts[key] for key in Reset.model_fields}) if "selected" in facts else None
    return ModelResult(
        metrics=metrics, seconds=round(seconds, 2), reset=reset, defense=parts or None, statistics=statistics
    )


def _sanitized(read: dict[str, Artifact], metrics: dict[str, Measured]) -> ModelResult:
    """The suspect's metrics on sanitized rows: what was done to those, and the seconds that took."""
    seconds = sum(rows.seconds + rows.facts["inspected_seconds"] for rows in read.values())
    spec = next(iter(read.values())).stage["components"]["sanitizer"]
    return ModelResult(
        metrics=metrics,
        seconds=round(seconds, 2),
        defense={"sanitizer": {"name": spec["name"], **spec["parameters"]}},
        sanitized={
            on: Sanitized(**{key: rows.facts[key] for key in Sanitized.model_fields}) for on, rows in read.items()
        },
    )


def _environment(plan: Plan) -> Environment:
    """What the numbers may depend on beyond the recipe."""
    recipe = plan.recipe
    given: dict[Plugin, set[str]] = {}
    for named in [*(named for _, named in parts(recipe)), recipe.executor, *recipe.observers]:
        kind = named.component.kind
        given.setdefault(recipe.host.plugin_of(kind, named.name), set()).add(f"{kind} {named.name}")
    plugins = [
        PluginRecord(name=plugin.name, distribution=plugin.origin, version=plugin.version, components=sorted(found))
        for plugin, found in given.items()
    ]
    return Environment(
        python=platform.python_version(),
        versions={name: version(name) for name in DISTRIBUTIONS},
        plugins=sorted(plugins, key=lambda plugin: (plugin.name, plugin.distribution)),
        device=plan.machine["device"],
        device_name=_device_name(plan.machine["device"]),
        threads=plan.machine["threads"],
        platform=platform.platform(),
    )


@cache
def _device_name(device: str) -> str:
    """What the graphics card or the processor calls itself, as far as this machine has it."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
