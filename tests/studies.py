"""Folders of studies with results whose numbers are known, without running anything."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from defensekit.components import Measured
from defensekit.result.schema import (
    Chosen,
    Environment,
    Histogram,
    ModelResult,
    Reset,
    Result,
    StageRecord,
    TrialResult,
)
from defensekit.studies.folder import Folder


def id_of(axes: Mapping[str, Any], seed: int) -> str:
    """What a run of a made-up study is called."""
    return hashlib.sha256(json.dumps([axes, seed]).encode()).hexdigest()[:16]


def model(metrics: Mapping[str, float], reset: Reset | None = None, seconds: float = 10.0) -> ModelResult:
    """A model with metrics on 100 rows."""
    measured = {n: Measured(value=v, low=max(v - 0.05, 0), high=min(v + 0.05, 1), rows=100) for n, v in metrics.items()}
    return ModelResult(metrics=measured, seconds=seconds, reset=reset)


def reset(tensors: dict[str, tuple[int, int, int]]) -> Reset:
    """What was selected of some tensors."""
    scope, eligible, selected = (sum(counts[i] for counts in tensors.values()) for i in range(3))
    scores = Histogram(log=False, low=0, high=1, zero=0, counts=[eligible], selected=[selected])
    return Reset(dimensions=scope, in_scope=scope, eligible=eligible, selected=selected, tensors=tensors, scores=scores)


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
        asr_floor=clean.metrics["asr"].value if clean else None,
        clean_budget=768,
        chosen=took or None,
        curve=trials,
        examples=[],
        attack={"target": 1},
        data={"labels": ["negative", "positive"], "rows": {"test": 100}},
        statistics=None,
        warnings=[],
        recipe={"seed": 0},
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
