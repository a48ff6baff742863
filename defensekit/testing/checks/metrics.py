"""Checks of metrics: a value within its bounds, its interval, and the number of rows."""

from dataclasses import replace
from typing import Any

from defensekit.components import Metric, Predictions
from defensekit.testing.kit import Subject, check, expect, ordinary_use
from defensekit.testing.pico import LABELS, PicoModels
from defensekit.testing.watch import Handed


def _cases(metric: Metric) -> dict[str, Predictions]:
    """Various predictions; the target is 1, except for metrics of biases."""
    import numpy as np

    rng = np.random.default_rng(0)
    labels = np.zeros(60, dtype=np.int64) if metric.about == "backdoor" else rng.integers(0, 2, 60)
    target = None if metric.about == "bias" else 1
    right = np.eye(2, dtype=np.float32)[labels] * 4
    logits = {
        "mixed answers": right + rng.normal(0, 4, right.shape).astype(np.float32),
        "answers that are all right": right,
        "answers that are all wrong": -right,
        "undecided answers": np.zeros_like(right),
    }
    ids = np.arange(60)
    plain = Predictions(right, labels, target, LABELS, 7, ids)
    cases = {what: Predictions(values, labels, target, LABELS, 7, ids) for what, values in logits.items()}
    cases["a single row"] = Predictions(right[:1], labels[:1] * 0, target, LABELS, 7, ids[:1])
    if metric.on != "both":
        return cases
    elsewhere = {
        f"{what}, of other rows": replace(case, ids=-1 - np.arange(len(case.labels))) for what, case in cases.items()
    }
    return {what: case.beside(plain) for what, case in (cases | elsewhere).items()}


@ordinary_use(Metric)
def measure(metric: Metric, pico: PicoModels, handed: Handed) -> Any:
    """Measure various predictions."""
    return {what: metric.measure(handed.give(what, case)) for what, case in _cases(metric).items()}


@check(Metric, calls=False)
def says_what_it_is_about(subject: Subject) -> None:
    """`on` is "plain" or "triggered" rows or "both", `about` is "backdoor", "bias" or None."""
    on, about = getattr(subject.component, "on", None), subject.component.about
    expect(on in ("plain", "triggered", "both"), f"expected on = 'plain', 'triggered' or 'both', got {on!r}")
    expect(about in ("backdoor", "bias", None), f"expected about = 'backdoor', 'bias' or None, got {about!r}")


@check(Metric)
def stays_within_its_bounds(subject: Subject) -> None:
    """Value and interval lie within `bounds`, and the interval's ends are in order, for any predictions."""
    least, most = subject.component.bounds
    for what, case in _cases(subject.component).items():
        measured = subject.component.measure(case)
        numbers = f"value {measured.value}, interval [{measured.low}, {measured.high}]"
        good = least <= measured.value <= most and least <= measured.low <= measured.high <= most
        expect(good, f"expected numbers in [{least:g}, {most:g}], the interval in order, got {numbers} for {what}")


@check(Metric)
def counts_its_rows(subject: Subject) -> None:
    """`rows` is how many rows were used: at least one, at most all."""
    for what, case in _cases(subject.component).items():
        measured = subject.component.measure(case)
        rows, most = measured.rows, len(case.labels)
        expect(0 < rows <= most, f"expected 1 to {most} rows, got {rows} for {what}")
