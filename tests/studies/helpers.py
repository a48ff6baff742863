"""Folders of studies with results whose numbers are known, without running anything."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from defensekit.components import Executor, Measured, Workers
from defensekit.pipeline.executors import compute
from defensekit.pipeline.store import key_of
from defensekit.recipe.recipe import NamedComponent
from defensekit.result.schema import (
    Chosen,
    Environment,
    Histogram,
    MetricRecord,
    ModelResult,
    ResetCounts,
    Result,
    StageRecord,
    TrialResult,
)
from defensekit.studies.folder import Folder
from defensekit.studies.loading import Study, load_study
from defensekit_executors.local import Local


def id_of(axes: Mapping[str, Any], seed: int) -> str:
    """What a run of a made-up study is called."""
    return hashlib.sha256(json.dumps([axes, seed]).encode()).hexdigest()[:16]


def model(metrics: Mapping[str, float], reset: ResetCounts | None = None, seconds: float = 10.0) -> ModelResult:
    """A model with metrics on 100 rows."""
    measured = {n: Measured(value=v, low=max(v - 0.05, 0), high=min(v + 0.05, 1), rows=100) for n, v in metrics.items()}
    return ModelResult(metrics=measured, seconds=seconds, reset=reset)


def reset(tensors: dict[str, tuple[int, int, int]]) -> ResetCounts:
    """What was selected of some tensors."""
    scope, eligible, selected = (sum(counts[i] for counts in tensors.values()) for i in range(3))
    scores = Histogram(log=False, low=0, high=1, zero=0, counts=[eligible], selected=[selected])
    return ResetCounts(
        dimensions=scope, in_scope=scope, eligible=eligible, selected=selected, tensors=tensors, scores=scores
    )


def result(
    models: Mapping[str, ModelResult],
    curve: Mapping[float, Mapping[str, float]] | None = None,
    chosen: float | None = None,
    oracle: Sequence[str] = (),
    stages: Sequence[StageRecord] = (),
) -> Result:
    """A result with some models, and the metrics of every value that a rule tried."""
    trials = [
        TrialResult(value=value, dev_accuracy=metrics["acc"], metrics=model(metrics).metrics)
        for value, metrics in (curve or {}).items()
    ]
    rule = "oracle-floor" if oracle else "accuracy-floor"
    took = chosen is not None and Chosen(
        rule=rule, over="selector.fraction", value=chosen, reason="said so", suspect_dev_accuracy=0.9
    )
    clean = models.get("clean")
    return Result(
        name="made-up",
        identity="0" * 64,
        identified={},
        oracle=list(oracle),
        summary={},
        models=dict(models),
        test_rows={},
        metrics={
            "acc": MetricRecord(
                on="plain",
                about=None,
                better="higher",
                meaning="accuracy",
                has_floor=False,
                floor=None,
                is_mean=True,
                bounds=(0.0, 1.0),
                hub_name="",
            ),
            "asr": MetricRecord(
                on="triggered",
                about="backdoor",
                better="lower",
                meaning="success",
                has_floor=True,
                is_mean=True,
                bounds=(0.0, 1.0),
                hub_name="",
                floor=clean.metrics["asr"].value if clean else None,
            ),
        },
        clean_budget=768,
        chosen=took or None,
        curve=trials,
        examples=[],
        attack={"target": 1},
        data={"labels": ["negative", "positive"], "rows": {"test": 100}},
        statistics=None,
        warnings=[],
        recipe={"seed": 0, "metrics": [{"name": "acc"}, {"name": "asr"}]},
        stages=list(stages),
        environment=Environment(
            python="3.11", versions={"torch": "2"}, plugins=[], device="cpu", device_name="CPU", threads=1, platform="x"
        ),
        seconds=1.0,
        folder="/nowhere",
    )


def write_study(
    place: Path,
    runs: Sequence[tuple[dict[str, Any], int, Result | str | None]],
    matrix: Mapping[str, Any] | None = None,
) -> Path:
    """A study's folder with runs: axes, seed, and a result, the error of a failed one, or nothing of a missing one."""
    folder = Folder(place.parents[1], place.name)
    axes: dict[str, list[Any]] = {}
    for labels, _, _ in runs:
        for axis, label in labels.items():
            axes.setdefault(axis, [])
            axes[axis] += [label] if label not in axes[axis] else []
    described = [{"id": id_of(labels, seed), "axes": labels, "seed": seed} for labels, seed, _ in runs]
    study = {"name": place.name, "matrix": matrix or {axis: list(values) for axis, values in axes.items()}}
    folder.describe({"schema_version": 1, "study": study, "axes": axes, "runs": described})
    for labels, seed, found in runs:
        if isinstance(found, Result):
            folder.write(id_of(labels, seed), found.model_copy(update={"study": place.name, "axes": labels}))
        elif found:
            folder.fail(id_of(labels, seed), {"axes": labels, "error": found})
    return place


MATRIX = {"defense.scorer": ["diffusion", "magnitude"], "defense.selector.fraction": [0.25, 0.5]}


def study(beside: Path, **keys: Any) -> Path:
    """A study's file beside a recipe's."""
    path = beside.parent / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "recipe": beside.name, "matrix": MATRIX, **keys}, sort_keys=False))
    return path


def numbers(result: Result | Mapping[str, Any]) -> Any:
    """What has to come out the same, as plain data."""
    found = result.model_dump(mode="json") if isinstance(result, Result) else result
    models = {name: [model["metrics"], model["reset"]] for name, model in found["models"].items()}
    return json.loads(json.dumps([found["chosen"], found["curve"], models]))


def results(folder: Path) -> dict[tuple[Any, ...], Any]:
    """The numbers of every run, by its place in the matrix."""
    found = [json.loads(path.read_text()) for path in (folder / "results").glob("*.json")]
    return {(*result["axes"].values(), result["recipe"]["seed"]): numbers(result) for result in found}


class _Counting(Workers):
    """Computes here, or lets others do it, and counts."""

    def __init__(self) -> None:
        self.computed: Counter[str] = Counter()
        self.busy = self.most = 0
        self.others: Workers | None = None
        self.lock = threading.Lock()

    @property
    def slots(self) -> int:
        return self.others.slots if self.others else 1

    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        with self.lock:
            self.computed[key_of(stage)] += 1
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            (self.others.execute if self.others else compute)(stage, store, report)
        finally:
            with self.lock:
                self.busy -= 1


def counted(path: Path, counting: _Counting, workers: int = 0) -> Study:
    """A study whose stages a counter sees: computed here, or by so many processes."""

    class Counted(Executor):
        @contextmanager
        def open(self) -> Iterator[Workers]:
            with Local(workers=workers).open() if workers else nullcontext() as counting.others:
                yield counting

    return replace(load_study(path), executor=NamedComponent("counted", Counted()))


SCORER, ATTACK, FRACTION = "defense.scorer", "attack.name", "defense.selector.fraction"


def ended(acc: float, asr: float, **others: Any) -> Any:
    """A result whose purified model has these metrics."""
    models = {
        "clean": model({"acc": 0.9, "asr": 0.1}, seconds=80),
        "suspect": model({"acc": 0.88, "asr": 1.0}, seconds=70),
        "purified": model({"acc": acc, "asr": asr}),
    }
    return result(models, **others)
