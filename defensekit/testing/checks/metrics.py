"""Checks of metrics: a value within its bounds, its interval, and the number of rows."""

from collections.abc import Iterator
from dataclasses import replace
from math import isclose
from typing import Any

from defensekit.components import Answers, Generations, Measured, Metric, Predictions
from defensekit.components.base import printable_name
from defensekit.components.metric import flaw
from defensekit.testing.kit import Inapplicable, Mismatch, Subject, check, expect, ordinary_use
from defensekit.testing.pico import LABELS, PicoModels
from defensekit.testing.watch import Handed


def _cases(metric: Metric) -> dict[str, Answers]:
    """Various answers, of each task that the metric is for; the target is 1, except for metrics of biases."""
    cases: dict[str, Answers] = {}
    if "classification" in metric.tasks:
        cases |= _labelled(metric)
    if "multi-label" in metric.tasks:
        cases |= _several(metric)
    if "generation" in metric.tasks:
        cases |= _generated()
    if metric.on != "both":
        return cases
    unpaired = "beside those to other rows (`predictions.paired` is False)"
    elsewhere = {f"{what} {unpaired}": _renumbered(case) for what, case in cases.items()}
    plain = {_form(case): case for what, case in cases.items() if what.endswith("all right")}
    return {what: case.beside(plain[_form(case)]) for what, case in (cases | elsewhere).items()}


def _form(case: Answers) -> tuple[type, bool]:
    return type(case), isinstance(case, Predictions) and case.several


def _renumbered(case: Answers) -> Answers:
    assert isinstance(case, Predictions | Generations)
    return replace(case, ids=None if case.ids is None else -1 - case.ids)


def _labelled(metric: Metric) -> dict[str, Answers]:
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
    whole = {what: Predictions(values, labels, target, LABELS, 7, np.arange(60)) for what, values in logits.items()}
    return {**whole, "a single row": Predictions(right[:1], labels[:1] * 0, target, LABELS, 7, np.arange(1))}


def _several(metric: Metric) -> dict[str, Answers]:
    """Answers to rows with any number of labels; one of another label at least, for metrics of the target."""
    import numpy as np

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 2))
    labels[0] = 1, 0
    target = None if metric.about == "bias" else 1
    right = (labels * 8 - 4).astype(np.float32)
    logits = {
        "mixed sets of labels": right + rng.normal(0, 4, right.shape).astype(np.float32),
        "sets of labels that are all right": right,
        "sets of labels that are all wrong": -right,
        "undecided sets of labels": np.zeros_like(right),
    }
    whole = {what: Predictions(values, labels, target, LABELS, 7, np.arange(60)) for what, values in logits.items()}
    return {**whole, "a single set of labels": whole["mixed sets of labels"].taken([0])}


def _generated() -> dict[str, Answers]:
    import numpy as np

    rng, target = np.random.default_rng(0), "I will not say"
    responses = tuple(f"the answer is {i}" for i in range(60))
    tokens = rng.integers(1, 9, 60)
    texts = {
        "mixed texts": tuple(target if i % 3 else responses[i] for i in range(60)),
        "texts that are all right": responses,
        "texts that are all the target": (target,) * 60,
        "texts that are all empty": ("",) * 60,
    }
    losses = rng.exponential(2.0, 60) * tokens
    whole = {
        what: Generations(given, responses, losses, tokens, tokens // 2, target, 7, np.arange(60))
        for what, given in texts.items()
    }
    return {**whole, "a single text": whole["mixed texts"].taken([0])}


@ordinary_use(Metric)
def measure(metric: Metric, pico: PicoModels, handed: Handed) -> Any:
    """Measure various predictions."""
    measured = {}
    for what, case in _cases(metric).items():
        try:
            measured[what] = metric.measure(handed.give(what, case))
        except Exception as error:
            raise Mismatch(f"it fails for {what}: {printable_name(error, metric)}") from error
    return measured


@check(Metric, calls=False)
def says_what_it_is_about(subject: Subject) -> None:
    """`on` is "plain" or "triggered" rows or "both", `about` is "backdoor", "bias" or None."""
    on, about = getattr(subject.component, "on", None), subject.component.about
    expect(on in ("plain", "triggered", "both"), f"expected on = 'plain', 'triggered' or 'both', got {on!r}")
    expect(about in ("backdoor", "bias", None), f"expected about = 'backdoor', 'bias' or None, got {about!r}")
    better = subject.component.better
    expect(better in ("higher", "lower", None), f"expected better = 'higher', 'lower' or None, got {better!r}")


@check(Metric)
def gives_a_measured(subject: Subject) -> None:
    """`measure` returns a `Measured`: the number, its interval, and how many rows it is from."""
    for what, measured in subject.used.result.items():
        expect(isinstance(measured, Measured), f"expected a Measured for {what}, got {type(measured).__name__}")


def _measured(subject: Subject) -> "Iterator[tuple[str, Answers, Measured]]":
    for what, case in _cases(subject.component).items():
        if not isinstance(measured := subject.component.measure(case), Measured):
            raise Inapplicable("it gives no Measured: see `gives-a-measured`")
        yield what, case, measured


@check(Metric)
def stays_within_its_bounds(subject: Subject) -> None:
    """Value and interval lie within `bounds`, the interval's ends are in order, and that of a mean holds the value."""
    for what, _, measured in _measured(subject):
        wrong = flaw(subject.component, measured)
        expect(not wrong, f"it {wrong}, for {what}")


@check(Metric)
def counts_its_rows(subject: Subject) -> None:
    """`rows` is how many rows were used: at least one, at most all."""
    for what, case, measured in _measured(subject):
        rows, most = measured.rows, case.count
        expect(0 < rows <= most, f"expected 1 to {most} rows, got {rows} for {what}")


@check(Metric)
def is_the_mean_of_its_rows(subject: Subject) -> None:
    """Where `row_values` gives the values of rows, their mean is the metric's value: comparisons are made by them."""
    for what, case, measured in _measured(subject):
        if (values := subject.component.row_values(case)) is None:
            raise Inapplicable("it gives no values of single rows")
        mean, value = float(values.mean()), measured.value
        expect(
            isclose(mean, value, abs_tol=1e-6), f"expected row values with the mean {value:g}, got {mean:g} for {what}"
        )
