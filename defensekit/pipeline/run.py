"""A run: from a recipe to a result."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from defensekit.components import Measured, Metric, Observer, Predictions, Trial, call_component
from defensekit.host.registry import Plugin
from defensekit.pipeline import run_folder
from defensekit.pipeline.dry_run import stages_ahead
from defensekit.pipeline.experiment import Experiment, Questions, Requests
from defensekit.pipeline.identity import identified, identity, parts
from defensekit.pipeline.plan import Plan, Stage
from defensekit.pipeline.predictions import read_predictions
from defensekit.pipeline.preflight import locating_errors, survey
from defensekit.pipeline.runner import Runner
from defensekit.pipeline.store import DISTRIBUTIONS, Artifact, Store
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.recipe import NamedComponent, Recipe
from defensekit.result.schema import (
    DEFENDED,
    Chosen,
    Environment,
    Example,
    MetricRecord,
    ModelResult,
    PluginRecord,
    ResetCounts,
    Result,
    Sanitized,
    TrialResult,
)
from defensekit.text import ROWS, Row, read_rows
from defensekit.training import native_precision
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.logging import log, logged
from defensekit.utils.seeds import Seeds

EXAMPLES = 10  # triggered rows that a result shows


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
    root = Path(workspace)
    folder = run_folder.folder_of(loaded, root).absolute()
    try:
        with logged(folder / "run.log"), _opened(loaded, root, [run_folder.Log(), *observers]) as current:
            if doubts and current.plan.given_suspect:
                for text in doubts(current.plan.base.path, current.plan.given_suspect.path):
                    current.warn(text)
            result = current.result(folder)
            run_folder.write(result, current.purified, lambda stage: current.runner.make(stage).files)
            log.info("done: %s", result.summary)
            current.runner.notify("run_finished", result.model_dump())
            return result
    except OSError as error:
        raise DefenseKitError(f"{error.strerror or error}: {error.filename or root}") from error


def run_attack(
    recipe: str | Path | Recipe, workspace: str | Path = "workspace", observers: Sequence[Observer] = ()
) -> dict[str, ModelResult]:
    """Run a recipe up to its defense: the clean reference (of an attack's recipe) and the suspect, measured.

    Every stage is one of `run`'s, and in the workspace for it.

    Raises:
        UsageError, DefenseKitError: as `run`.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    with _opened(loaded, Path(workspace), observers) as current:
        current.make(current.experiment.before_defense())
        return current.models


@contextmanager
def _opened(recipe: Recipe, workspace: Path, observers: Sequence[Observer]) -> "Iterator[Run]":
    """A run on its own, with workers and observers of its own."""
    watching = [*observers, *(named.component for named in recipe.observers)]
    store = Store(workspace / "store")
    with recipe.executor.component.open() as workers:
        runner = Runner(store, workers, watching)
        runner.notify("run_started", recipe.resolved())
        try:
            store.sweep()
            plan = survey(recipe, partial(runner.notify, "message"))
            runner.notify("planned", stages_ahead(plan, store))
            yield Run(plan, runner)
        except Exception as error:
            runner.notify("run_failed", str(error))
            raise


class Run:
    """One run of a recipe: its plan, and what makes its stages."""

    def __init__(self, plan: Plan, runner: Runner) -> None:
        self.started = time.perf_counter()
        self.recipe = plan.recipe
        self.plan = plan
        self.runner = runner
        self.experiment = Experiment(plan, partial(runner.notify, "message"), self.warn)
        self.warnings: list[str] = []
        self.models: dict[str, ModelResult] = {}
        self.curve: list[TrialResult] = []
        for problem in self.recipe.host.problems:
            self.warn(str(problem))
        if self.recipe.precision == "bfloat16" != native_precision():
            self.warn("this machine emulates bfloat16, many times slower than float32; `precision: auto` avoids that")

    def result(self, folder: Path, examples: int = EXAMPLES) -> Result:
        """Run every stage that is not there yet. ``folder`` is where the result will lie."""
        recipe, plan, experiment = self.recipe, self.plan, self.experiment
        self.make(experiment.requests())
        models = self.models
        ended = DEFENDED[recipe.defense.stage]
        self.purified = cast(Stage, experiment.models[ended].defended.model) if ended == "purified" else None
        facts = identified(plan)
        return Result(
            name=recipe.name,
            identity=identity(facts),
            identified=facts,
            oracle=sorted({named.name for _, named in parts(recipe) if named.component.oracle}),
            summary={
                name: {**{key: measured.value for key, measured in model.metrics.items()}, "seconds": model.seconds}
                for name, model in models.items()
            },
            models=models,
            test_rows={on: stage.key for on, stage in experiment.test_rows.items()},
            metrics={named.name: _record(named, models.get("clean")) for named in recipe.metrics},
            clean_budget=(0 if recipe.defense.sanitizer else recipe.sizes.clean)
            + (recipe.sizes.dev if recipe.choose else 0),
            chosen=self.chosen(),
            curve=self.curve,
            examples=self.examples(examples, ended),
            attack=self.attack(),
            data=self.data(),
            statistics=models[ended].statistics,
            warnings=self.warnings,
            recipe=recipe.resolved(),
            stages=list(self.runner.records.values()),
            environment=_environment(plan),
            seconds=round(time.perf_counter() - self.started, 2),
            folder=str(folder),
        )

    def make(self, requests: Requests) -> None:
        """Make every stage that is asked for, and measure each model as soon as its answers are there."""
        artifact = None
        while True:
            try:
                request = requests.send(artifact)
            except StopIteration:
                self.measure()
                return
            self.measure()  # what a metric does wrong ends the run before the next model is made
            make = partial(self.runner.make, cast(Stage, request.stage))  # a run knows everything that it asks for
            artifact = locating_errors(self.recipe, request.recipe_key, make) if request.recipe_key else make()

    def measure(self) -> None:
        """Measure the models and trials whose answers came in since it was called last."""
        for name, questions in self.experiment.models.items():
            if name not in self.models:
                self.models[name] = self.measured(questions)
        for trial, questions in self.experiment.trials[len(self.curve) :]:
            self.curve.append(self.tried(trial, questions))

    def warn(self, text: str) -> None:
        """A warning for the user, kept in the result."""
        self.warnings.append(text)
        self.runner.notify("warning", text)

    # -- rows ------------------------------------------------------------------------------------------------------

    def data(self) -> dict[str, Any]:
        """The labels, and how many rows each role has."""
        rows = {role: self.facts(self.plan.rows(role))["rows"] for role in self.experiment.roles}
        return {"labels": self.plan.labels, "rows": rows}

    def attack(self) -> dict[str, Any] | None:
        """What is known of the attacker's rows, or of those in a file."""
        if (triggered := self.experiment.triggered) is None:
            return None
        found: dict[str, Any] = {"target": self.target}
        stages = {"test": triggered}
        if self.recipe.attack:
            found["name"] = self.recipe.attack.name
            stages["train"] = self.plan.poisoned()
        for which, stage in stages.items():
            facts = self.facts(stage)
            found[which] = {name: value for name, value in facts.items() if name not in ("labels", "target")}
        return found

    def facts(self, stage: Stage) -> dict[str, Any]:
        """The facts of a stage that was made."""
        return self.runner.make(stage).facts

    @cached_property
    def target(self) -> int | None:
        """The number of the label that the attack aims at."""
        return self.experiment.check_target() if self.experiment.triggered else None

    # -- models ----------------------------------------------------------------------------------------------------

    def measured(self, questions: Questions) -> ModelResult:
        """Every metric of a model, from its stored predictions, and how it was made."""
        predictions = {on: self.runner.make(stage) for on, stage in questions.predictions.items()}
        metrics = self.metrics(questions)
        keys = {on: artifact.key for on, artifact in predictions.items()}
        if rewritten := {on: self.runner.make(rows) for on, rows in questions.rewritten.items()}:
            return _sanitized(rewritten, metrics, keys)
        # Nothing is asked of a model where every metric is about triggered rows, and there are none.
        about = next((artifact.facts["model"] for artifact in predictions.values()), None)
        return _model(about, metrics, keys)

    def metrics(self, questions: Questions) -> dict[str, Measured]:
        """The metrics of a model, in the recipe's order."""
        found = {}
        for named in self.recipe.metrics:
            metric = named.component
            if metric.on in questions.predictions:
                predictions = self.predictions(questions.predictions[metric.on])
                found[named.name] = call_component(metric, metric.measure, predictions)
        return found

    def predictions(self, stage: Stage) -> Predictions:
        """Stored answers, as metrics get them."""
        seed = Seeds(self.recipe.seed).metrics
        return read_predictions(self.runner.make(stage).files, self.target, tuple(self.plan.labels), seed)

    def examples(self, count: int, ended: str) -> list[Example]:
        """The first triggered test rows, with what is answered before the defense and after it."""
        models, triggered = self.experiment.models, self.experiment.triggered
        if triggered is None or "triggered" not in models[ended].predictions or not count:
            return []
        answers = {
            name: self.predictions(models[name].predictions["triggered"]).answers() for name in ("suspect", ended)
        }
        plain = {row.id: row for row in self._read(self.plan.rows("test"))} if self.recipe.attack else {}
        rewritten = models[ended].rewritten.get("triggered")
        read = self._read(rewritten) if rewritten else None
        found = []
        for i, row in enumerate(self._read(triggered)[:count]):
            before = plain.get(row.id)
            found.append(
                Example(
                    text=row.text,
                    pair=row.pair,
                    plain=before.text if before else None,
                    plain_pair=before.pair if before else None,
                    label=self.plan.labels[row.label],
                    answers={name: self.plan.labels[given[i]] for name, given in answers.items()},
                    sanitized=read[i].text if read else None,
                    sanitized_pair=read[i].pair if read else None,
                )
            )
        return found

    def _read(self, stage: Stage) -> list[Row]:
        return read_rows(self.runner.make(stage).files / ROWS)

    # -- the choice ------------------------------------------------------------------------------------------------

    def tried(self, trial: Trial, questions: Questions) -> TrialResult:
        """A value that the rule tried; its metrics are for the reader alone."""
        keys = {on: stage.key for on, stage in questions.predictions.items()}
        metrics = self.metrics(questions)
        return TrialResult(value=trial.value, dev_accuracy=trial.accuracy, metrics=metrics, predictions=keys)

    def chosen(self) -> Chosen | None:
        """What the rule took."""
        choice, suspect, named = self.experiment.choice, self.experiment.suspect_trial, self.recipe.choose
        if choice is None or suspect is None or named is None:
            return None
        over = named.component.over
        return Chosen(
            rule=named.name,
            over=over,
            value=choice.value,
            reason=choice.reason,
            suspect_dev_accuracy=suspect.accuracy,
            lower_does_more=self.recipe.defense.lower_does_more(over),
        )


def _record(named: NamedComponent[Metric], clean: ModelResult | None) -> MetricRecord:
    """What a metric is, with its floor where there is a clean reference."""
    metric = named.component
    found = clean.metrics.get(named.name) if clean and metric.has_floor else None
    return MetricRecord(
        on=metric.on,
        about=metric.about,
        better=metric.better,
        meaning=metric.meaning,
        has_floor=metric.has_floor,
        is_share=type(metric).hits is not Metric.hits,
        hub_name=metric.hub_name,
        floor=found.value if found else None,
    )


def _model(about: dict[str, Any] | None, metrics: dict[str, Measured], keys: dict[str, str]) -> ModelResult:
    """A model's metrics with what its predictions remember of it."""
    if about is None:
        return ModelResult(metrics=metrics, seconds=None, predictions=keys)
    facts, seconds, memory = about["facts"], about["seconds"], [about["peak_memory"]]
    statistics = facts.get("statistics")
    if statistics:
        seconds += statistics["seconds"]
        memory.append(statistics["peak_memory"])
        estimator = statistics["components"]["estimator"]["name"]
        statistics = {"estimator": estimator, "seconds": statistics["seconds"], **statistics["facts"]}
    parts = {
        role: {"name": c["name"], **c["parameters"]} for role, c in about["components"].items() if role != "attack"
    }
    reset = ResetCounts(**{key: facts[key] for key in ResetCounts.model_fields}) if "selected" in facts else None
    return ModelResult(
        metrics=metrics,
        seconds=round(seconds, 2),
        peak_memory=max((some for some in memory if some is not None), default=None),
        reset=reset,
        defense=parts or None,
        statistics=statistics,
        predictions=keys,
    )


def _sanitized(read: dict[str, Artifact], metrics: dict[str, Measured], keys: dict[str, str]) -> ModelResult:
    """The suspect's metrics on sanitized rows: what was done to those, and the seconds that took."""
    seconds = sum(rows.seconds + rows.facts["inspected_seconds"] for rows in read.values())
    spec = next(iter(read.values())).stage["components"]["sanitizer"]
    return ModelResult(
        metrics=metrics,
        seconds=round(seconds, 2),
        defense={"sanitizer": {"name": spec["name"], **spec["parameters"]}},
        predictions=keys,
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
