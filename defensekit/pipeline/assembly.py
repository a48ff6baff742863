"""The result of a run, assembled from the artifacts of its stages."""

import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.components import Measured, Metric, Trial, call_component, component_error
from defensekit.components.metric import flaw, is_mean
from defensekit.defense import filtering
from defensekit.host.registry import Plugin
from defensekit.models import answers
from defensekit.pipeline.detection import auroc, on_pairs, operating_points, read_scores, unanswered
from defensekit.pipeline.experiment import Experiment, Questions
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.identity import identified, identity, parts
from defensekit.pipeline.plan import Plan
from defensekit.pipeline.predictions import only_answer, read_answers, read_for
from defensekit.pipeline.runner import Runner
from defensekit.pipeline.store import Artifact, versions
from defensekit.recipe.recipe import NamedComponent
from defensekit.result.narrative import verdict
from defensekit.result.schema import (
    DEFENDED,
    Chosen,
    DetectorResult,
    Environment,
    Example,
    Filtered,
    MetricRecord,
    ModelResult,
    PluginRecord,
    ResetCounts,
    Result,
    Sanitized,
    TrialResult,
    Trigger,
)
from defensekit.text import ROWS, Row, in_words, read_rows
from defensekit.utils.seeds import Seeds

if TYPE_CHECKING:
    import numpy as np


class ResultAssembly:
    """Measures the models of a run from their predictions, and assembles the result.

    ``models`` and ``curve`` are the models and trials that were measured so far.
    """

    def __init__(self, experiment: Experiment, runner: Runner) -> None:
        self.started = time.perf_counter()
        self.experiment = experiment
        self.plan = experiment.plan
        self.recipe = experiment.plan.recipe
        self.runner = runner
        self.models: dict[str, ModelResult] = {}
        self.curve: list[TrialResult] = []

    def measure(self) -> None:
        """Measure the models and trials whose predictions were computed since the last call."""
        for name, questions in self.experiment.models.items():
            if name not in self.models:
                self.models[name] = self.measured(questions)
        for trial, questions in self.experiment.trials[len(self.curve) :]:
            self.curve.append(self.tried(trial, questions))

    def result(self, folder: Path, warnings: list[str], examples: int) -> Result:
        """The result of a run whose stages are all computed.

        Args:
            folder: the folder that the result will be written to.
            warnings: for the user.
            examples: how many triggered test rows the result shows.
        """
        recipe, plan, experiment = self.recipe, self.plan, self.experiment
        models = self.models
        ended = DEFENDED[recipe.defense.stage]
        facts = identified(plan)
        result = Result(
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
            clean_budget=sum(getattr(recipe.sizes, role) for role in recipe.defender_roles),
            chosen=self.chosen(),
            curve=self.curve,
            detectors={name: self.detector(stages) for name, stages in experiment.scores.items()},
            examples=self.examples(examples, ended),
            attack=self.attack(),
            data=self.data(),
            statistics=models[ended].statistics,
            warnings=warnings,
            recipe=recipe.resolved(),
            stages=list(self.runner.records.values()),
            environment=_environment(plan),
            seconds=round(time.perf_counter() - self.started, 2),
            folder=str(folder),
        )
        return result.model_copy(update={"verdict": verdict(result)}) if ended == "purified" else result

    # -- rows ------------------------------------------------------------------------------------------------------

    def data(self) -> dict[str, Any]:
        """The labels, and how many rows each role has."""
        rows = {role: self.facts(self.plan.rows(role))["rows"] for role in self.experiment.roles}
        return {"labels": self.plan.labels, "rows": rows}

    def attack(self) -> dict[str, Any] | None:
        """Facts about the attacker's rows, or about the triggered rows in a file; None without triggered rows."""
        if (triggered := self.experiment.triggered) is None:
            return None
        facts: dict[str, Any] = {"target": self.target}
        stages = {"test": triggered}
        if self.recipe.attack:
            facts["name"] = self.recipe.attack.name
            stages["train"] = self.plan.poisoned()
        for which, stage in stages.items():
            counts = self.facts(stage)
            facts[which] = {name: value for name, value in counts.items() if name not in ("labels", "target")}
        return facts

    def facts(self, stage: Stage) -> dict[str, Any]:
        """The facts of a stage's artifact."""
        return self.runner.make(stage).facts

    @cached_property
    def target(self) -> int | str | None:
        """The answer that the attack aims at: a label's number, or a text."""
        return self.experiment.check_target() if self.experiment.triggered else None

    # -- models ----------------------------------------------------------------------------------------------------

    def measured(self, questions: Questions) -> ModelResult:
        """Every metric of a model, from its stored predictions, and how it was made."""
        predictions = {on: self.runner.make(stage) for on, stage in questions.predictions.items()}
        metrics = self.metrics(questions)
        keys = {on: artifact.key for on, artifact in predictions.items()}
        if rewritten := {on: self.runner.make(rows) for on, rows in questions.rewritten.items()}:
            model = _sanitized(rewritten, metrics, keys)
        else:
            # A model has no predictions if every metric is about triggered rows and the run has none.
            about = next((artifact.facts["model"] for artifact in predictions.values()), None)
            turned = answers.names(self.plan.labels, self.experiment.task == "multi-label")
            model = _model(about, metrics, keys, turned)
        if "plain" in questions.predictions:
            only = only_answer(self.predictions(questions.predictions["plain"]))
            model = model.model_copy(update={"only": only})
        return self._filtered(model, questions.defended.kept) if questions.defended.kept else model

    def _filtered(self, model: ModelResult, kept: Stage) -> ModelResult:
        """A model that was trained without some rows, with what is known of these; only here it is which are poisoned.

        A poisoned row is one that the attack changed, relabelled or added.
        """
        artifact = self.runner.make(kept)
        clean = {row.id: row for row in self._read(self.plan.rows("train"))}
        poisoned = [row != clean.get(row.id) for row in self._read(self.plan.poisoned())]
        spec, scores = artifact.stage["components"]["filter"], artifact.facts["scores"]
        seconds = scores["seconds"] + scores["facts"]["features"]["seconds"]
        return model.model_copy(
            update={
                "filtered": Filtered(**filtering.found(**filtering.read(artifact.files), poisoned=poisoned)),
                "defense": {"filter": {"name": spec["name"], **spec["parameters"]}},
                "seconds": None if model.seconds is None else round(model.seconds + seconds, 2),
            }
        )

    def metrics(self, questions: Questions, flagged: "Mapping[str, np.ndarray] | None" = None) -> dict[str, Measured]:
        """The metrics of a model, in the recipe's order.

        Args:
            questions: what the model was asked about.
            flagged: the ids of rows that are not answered, by the rows: metrics that are means over rows count these as
                neither right nor the target, and others are left out.
        """
        measured = {}
        for named in self.recipe.metrics:
            metric = named.component
            folders = {on: self.runner.make(stage).files for on, stage in questions.predictions.items()}
            predictions = read_for(metric.on, folders, **self._context)
            if flagged is not None and predictions is not None:
                predictions = unanswered(predictions, flagged, metric.on) if is_mean(metric) else None
            if predictions is not None:
                measured[named.name] = _measured(metric, predictions)
        return measured

    def detector(self, stages: dict[str, Stage]) -> DetectorResult:
        """What a detector's scores are worth."""
        artifacts = {on: self.runner.make(stage) for on, stage in stages.items()}
        scored = {on: read_scores(artifact.files) for on, artifact in artifacts.items()}
        seed, facts = Seeds(self.recipe.seed).metrics, artifacts["plain"].facts
        area = on_pairs(auroc, scored["triggered"], scored["plain"], seed) if "triggered" in scored else None
        seconds = facts["fitted_seconds"] + sum(artifact.seconds for artifact in artifacts.values())
        return DetectorResult(
            auroc=area,
            points=operating_points(scored, partial(self.metrics, self.experiment.models["suspect"]), seed),
            milliseconds=round(facts["milliseconds"], 3),
            seconds=round(seconds, 2),
            scores={on: artifact.key for on, artifact in artifacts.items()},
        )

    def predictions(self, stage: Stage) -> Any:
        """The stored answers of a stage, with what metrics need besides."""
        return read_answers(self.runner.make(stage).files, **self._context)

    @property
    def _context(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "names": tuple(self.plan.labels),
            "seed": Seeds(self.recipe.seed).metrics,
        }

    def examples(self, count: int, ended: str) -> list[Example]:
        """The first triggered test rows, with what is answered before the defense and after it."""
        models, triggered = self.experiment.models, self.experiment.triggered
        if triggered is None or "triggered" not in models[ended].predictions or not count:
            return []
        answers = {name: self.predictions(models[name].predictions["triggered"]) for name in ("suspect", ended)}
        plain = {row.id: row for row in self._read(self.plan.rows("test"))} if self.recipe.attack else {}
        rewritten = models[ended].rewritten.get("triggered")
        read = self._read(rewritten) if rewritten else None
        examples = []
        for i, row in enumerate(self._read(triggered)[:count]):
            before = plain.get(row.id)
            examples.append(
                Example(
                    text=row.text,
                    pair=row.pair,
                    plain=before.text if before else None,
                    plain_pair=before.pair if before else None,
                    label=in_words(row.answer, self.plan.labels),
                    answers={name: given.shown(i) for name, given in answers.items()},
                    sanitized=read[i].text if read else None,
                    sanitized_pair=read[i].pair if read else None,
                )
            )
        return examples

    def _read(self, stage: Stage) -> list[Row]:
        return read_rows(self.runner.make(stage).files / ROWS)

    # -- the choice ------------------------------------------------------------------------------------------------

    def tried(self, trial: Trial, questions: Questions) -> TrialResult:
        """The record of a value that the rule tried; the rule does not see its metrics."""
        keys = {on: stage.key for on, stage in questions.predictions.items()}
        metrics = self.metrics(questions)
        return TrialResult(
            value=trial.value,
            dev_accuracy=trial.accuracy,
            planted=dict(trial.planted),
            metrics=metrics,
            predictions=keys,
        )

    def chosen(self) -> Chosen | None:
        """The value that the rule chose; None for a recipe without a rule."""
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
            suspect_planted=dict(suspect.planted),
            folds=named.component.folds,
            lower_does_more=self.recipe.defense.lower_does_more(over),
        )


def _measured(metric: Metric, predictions: Any) -> Measured:
    """What a metric gives, checked."""
    measured: Measured = call_component(metric, metric.measure, predictions)
    if wrong := flaw(metric, measured):
        raise component_error(metric, wrong)
    return measured


def _record(named: NamedComponent[Metric], clean: ModelResult | None) -> MetricRecord:
    """The description of a metric, with its floor if the run has a clean reference."""
    metric = named.component
    floor = clean.metrics.get(named.name) if clean and metric.has_floor else None
    return MetricRecord(
        on=metric.on,
        about=metric.about,
        better=metric.better,
        meaning=metric.meaning,
        has_floor=metric.has_floor,
        bounds=metric.bounds,
        is_mean=is_mean(metric),
        hub_name=metric.hub_name,
        floor=floor.value if floor else None,
    )


def _model(
    about: dict[str, Any] | None, metrics: dict[str, Measured], keys: dict[str, str], turned: list[str]
) -> ModelResult:
    """A model's metrics, with the facts that its predictions recorded about it; what answers can be turned to."""
    if about is None:
        return ModelResult(metrics=metrics, seconds=None, predictions=keys)
    facts, seconds, memory = about["facts"], about["seconds"], [about["peak_memory"]]
    statistics = facts.get("statistics")
    if statistics:
        seconds += statistics["seconds"]
        memory.append(statistics["peak_memory"])
        estimator = statistics["components"]["estimator"]["name"]
        statistics = {"estimator": estimator, "seconds": statistics["seconds"], **statistics["facts"]}
    if judged := facts.get("judged"):  # all after the same stages
        seconds += judged[0]["facts"]["seconds"] + sum(part["seconds"] for part in judged)
        memory += [peak for part in judged for peak in (part["peak_memory"], part["facts"]["peak_memory"])]
    parts = {
        role: {"name": c["name"], **c["parameters"]} for role, c in about["components"].items() if role != "attack"
    }
    reset = ResetCounts(**{key: facts[key] for key in ResetCounts.model_fields}) if "selected" in facts else None
    triggers = facts.get("triggers")
    return ModelResult(
        metrics=metrics,
        seconds=round(seconds, 2),
        triggers=None if triggers is None else [Trigger(**{**one, "label": turned[one["label"]]}) for one in triggers],
        tried=facts.get("tried"),
        unjudged=[turned[label] for label in facts.get("unjudged", ())],
        peak_memory=max((peak for peak in memory if peak is not None), default=None),
        reset=reset,
        defense=parts or None,
        statistics=statistics,
        predictions=keys,
    )


def _sanitized(read: dict[str, Artifact], metrics: dict[str, Measured], keys: dict[str, str]) -> ModelResult:
    """The suspect's metrics on sanitized rows, how the rows were changed, and the seconds of sanitizing them."""
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
    """Versions, plugins and machine: what numbers may depend on besides the recipe."""
    recipe = plan.recipe
    used: dict[Plugin, set[str]] = {}
    for named in [*(named for _, named in parts(recipe)), recipe.executor, *recipe.observers]:
        kind = named.component.kind
        used.setdefault(recipe.host.plugin_of(kind, named.name), set()).add(f"{kind} {named.name}")
    plugins = [
        PluginRecord(
            name=plugin.name, distribution=plugin.origin, version=plugin.version, components=sorted(components)
        )
        for plugin, components in used.items()
    ]
    return Environment(
        python=platform.python_version(),
        versions=versions(),
        plugins=sorted(plugins, key=lambda plugin: (plugin.name, plugin.distribution)),
        device=plan.machine["device"],
        device_name=_device_name(plan.machine["device"]),
        threads=plan.machine["threads"],
        platform=platform.platform(),
    )


@cache
def _device_name(device: str) -> str:
    """The name of the GPU, or of the processor."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
