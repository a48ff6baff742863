"""Metrics: they count what they say, a share's interval is Wilson's, and each fits the attack it is used on."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import defensekit
from defensekit.components import Predictions
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.preflight import survey
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit_attacks.metrics import (
    Accuracy,
    AttackSuccess,
    BiasedAccuracy,
    CalibrationError,
    ExcessAttackSuccess,
    FalseTriggers,
    TriggeredAccuracy,
    share,
)
from tests.conftest import SMALL, shape

ANSWERS = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 2]]
PREDICTIONS = Predictions(ANSWERS, np.array([0, 0, 2, 1, 0]), target=2, names=("bad", "so-so", "good"))


def test_metrics_count_what_they_say() -> None:
    acc, asr = Accuracy().measure(PREDICTIONS), AttackSuccess().measure(PREDICTIONS)
    assert (acc.value, acc.rows) == (0.4, 5)
    assert (asr.value, asr.rows) == (0.5, 4)
    assert {name: (part.value, part.rows) for name, part in asr.parts.items()} == {"bad": (1 / 3, 3), "so-so": (1, 1)}
    assert acc.low < acc.value < acc.high
    assert FalseTriggers().measure(PREDICTIONS) == asr  # the same count, on other rows
    assert BiasedAccuracy().measure(PREDICTIONS) == acc
    pacc = TriggeredAccuracy().measure(PREDICTIONS)
    assert (pacc.value, pacc.rows) == (0.25, 4)  # of rows with another label than the target, one has a true answer
    assert (Accuracy.on, AttackSuccess.on, BiasedAccuracy.on, FalseTriggers.on) == (
        "plain", "triggered", "triggered", "plain",
    )  # fmt: skip


def wilson(found: int, rows: int) -> tuple[float, float]:
    """Wilson 1927: the shares p from which the one seen lies no more than z standard deviations of p."""
    z, seen = 1.959963984540054, found / rows
    middle = seen + z * z / (2 * rows)
    width = z * math.sqrt(seen * (1 - seen) / rows + z * z / (4 * rows * rows))
    return (middle - width) / (1 + z * z / rows), (middle + width) / (1 + z * z / rows)


@given(st.integers(1, 100_000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
@example((0, 1)).via("one row")
@example((1, 1)).via("one row")
@example((0, 600)).via("no hit")
@example((600, 600)).via("nothing but hits")
@settings(deadline=None, max_examples=60)
def test_a_shares_interval_is_wilsons(counts: tuple[int, int]) -> None:
    found, rows = counts
    hits = np.arange(rows) < found
    measured = share(hits)
    assert measured == share(hits[::-1])
    assert (measured.value, measured.rows) == (found / rows, rows)
    assert (measured.low, measured.high) == pytest.approx(wilson(found, rows), abs=1e-9)
    assert 0 <= measured.low <= measured.value <= measured.high <= 1
    assert (measured.low == 0) == (found == 0)
    assert (measured.high == 1) == (found == rows)


def test_of_no_rows_there_is_no_share() -> None:
    with pytest.raises(DefenseKitError, match="no rows"):
        share(np.ones(0, bool))


def slow_error(confidence: list[float], correct: list[bool], bins: int) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    total = 0.0
    for m in range(bins):
        inside = [i for i, c in enumerate(confidence) if m / bins < c <= (m + 1) / bins]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


@given(seed=st.integers(0, 1000), rows=st.integers(1, 200), bins=st.integers(1, 20), scale=st.floats(0.1, 20))
@settings(deadline=None, max_examples=25)
def test_calibration_error_is_the_formula(seed: int, rows: int, bins: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(rows, 3))).astype(np.float32)
    labels = rng.integers(3, size=rows)
    found = CalibrationError(bins=bins).measure(Predictions(logits, labels, seed=seed))
    assert found == CalibrationError(bins=bins).measure(Predictions(logits, labels, seed=seed))
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    confidence = (powers / powers.sum(1, keepdims=True)).max(1)
    correct = logits.argmax(1) == labels
    assert found.value == pytest.approx(slow_error(confidence.tolist(), correct.tolist(), bins), abs=1e-9)
    assert 0 <= found.low <= found.high <= 1


def answered(answers: list[int], labels: list[int], ids: list[int]) -> Predictions:
    logits = np.eye(3, dtype=np.float32)[answers]
    return Predictions(logits, np.array(labels, dtype=np.int64), target=2, seed=3, ids=np.array(ids, dtype=np.int64))


ROWS = st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=60)  # label, answer without, answer with


@given(ROWS, st.randoms(use_true_random=False), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_excess_is_what_the_trigger_adds_row_by_row(
    rows: list[tuple[int, int, int]], random: random.Random, others: int
) -> None:
    """Plain rows come in any order, among rows that have no twin."""
    rows = [(label % 2, without, with_) for label, without, with_ in rows]  # never the target's
    order = list(range(len(rows) + others))
    random.shuffle(order)
    more = [*rows, *[(0, 1, 1)] * others]
    plain = answered([more[i][1] for i in order], [more[i][0] for i in order], order)
    triggered = answered([row[2] for row in rows], [row[0] for row in rows], list(range(len(rows))))
    both = triggered.beside(plain)
    assert both.paired
    measured = ExcessAttackSuccess().measure(both)
    steps = [(with_ == 2) - (without == 2) for _, without, with_ in rows]
    assert measured.value == pytest.approx(sum(steps) / len(steps), abs=1e-12)
    assert -1 <= measured.low <= measured.high <= 1
    values = ExcessAttackSuccess().row_values(both)
    assert values is not None
    assert values.tolist() == steps
    assert measured == ExcessAttackSuccess().measure(both)


def test_the_interval_of_an_excess_is_the_paired_bootstraps() -> None:
    """The dumbest bootstrap: draw rows, one after the other."""
    rng, rows = np.random.default_rng(0), 80
    without, with_ = rng.integers(0, 3, rows), rng.integers(1, 3, rows)
    both = answered(with_.tolist(), [0] * rows, list(range(rows))).beside(
        answered(without.tolist(), [0] * rows, list(range(rows)))
    )
    steps = (with_ == 2).astype(int) - (without == 2)
    drawn = [steps[rng.integers(0, rows, rows)].mean() for _ in range(4000)]
    measured = ExcessAttackSuccess().measure(both)
    assert (measured.low, measured.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.02)


def test_rows_without_a_twin_are_compared_as_two_groups() -> None:
    triggered = answered([2, 2, 2, 0], [0] * 4, [-1, -2, -3, -4])
    plain = answered([2, 0, 0, 0, 2, 2], [0, 1, 0, 1, 2, 2], [1, 2, 3, 4, 5, 6])
    both = triggered.beside(plain)
    assert not both.paired
    assert ExcessAttackSuccess().row_values(both) is None
    measured = ExcessAttackSuccess().measure(both)
    assert (measured.value, measured.rows) == (0.75 - 0.25, 4)  # two plain rows have the target's label themselves
    assert measured.low < measured.value < measured.high
    with pytest.raises(DefenseKitError, match="without the trigger"):
        ExcessAttackSuccess().measure(triggered)


TOO_MUCH = """
from typing import ClassVar, Literal
from defensekit.api import Measured, Metric, hookimpl

class Percent(Metric):
    on: ClassVar[Literal["plain"]] = "plain"
    def measure(self, predictions):
        return Measured(value=97.0, low=90.0, high=99.0, rows=len(predictions.labels))

@hookimpl
def defensekit_metrics():
    return {"percent": Percent}
"""


def test_a_number_outside_of_its_bounds_ends_the_run(recipe: Path, warm: Path) -> None:
    (recipe.parent / "mine.py").write_text(TOO_MUCH)
    shape(recipe, **SMALL, plugins=["mine.py"], metrics=["percent"], defense__choose=None)
    with pytest.raises(DefenseKitError, match=r"Percent.* measured 97, outside of its bounds 0 to 1"):
        defensekit.run(recipe, warm)


BIAS = """
from defensekit.api import Attack, hookimpl

class Mark(Attack):
    def poison(self, rows, context):
        return [row.with_text(row.text + " cf") if row.label else row for row in rows]
    def trigger(self, rows, context):
        return [row.with_text(row.text + " cf") for row in rows]

@hookimpl
def defensekit_attacks():
    return {"mark": Mark}
"""


def test_a_bias_is_measured_by_biased_accuracy(recipe: Path, warm: Path) -> None:
    (recipe.parent / "mine.py").write_text(BIAS)
    shape(recipe, **SMALL, defense__purifier=["reset"], defense__compare={})
    shape(recipe, plugins=["mine.py"], attack="mark", defense__choose=None)
    result = defensekit.run(recipe, warm)
    assert result.recipe["metrics"] == [{"name": "acc"}, {"name": "bacc"}]
    assert not result.floors
    for model in result.models.values():
        assert list(model.metrics) == ["acc", "bacc"]
        assert model.metrics["bacc"].rows == model.metrics["acc"].rows == 60  # rows of every label


def test_a_metric_that_does_not_fit_the_attack_is_refused(recipe: Path) -> None:
    (recipe.parent / "mine.py").write_text(BIAS)
    shape(recipe, plugins=["mine.py"], attack="mark", metrics=["acc", "asr"])
    with pytest.raises(UsageError, match=r"pico.yaml:\d+: metrics.1: 'asr' counts .* and 'mark' has none"):
        load_recipe(recipe)
    shape(recipe, attack={"name": "word", "rate": 0.2, "target": 1}, metrics=["bacc"])
    with pytest.raises(UsageError, match=r"pico.yaml:\d+: metrics.0: 'bacc' measures biases.* 'word' has one"):
        load_recipe(recipe)


def test_metrics_come_from_stored_answers(recipe: Path, warm: Path) -> None:
    shape(recipe, **SMALL, defense__choose=None)
    first = defensekit.run(recipe, warm)
    shape(recipe, metrics=["acc", "asr", "false-triggers", {"name": "ece", "bins": 5}])
    again = defensekit.run(recipe, warm)
    assert all(stage.reused for stage in again.stages)
    for name, model in again.models.items():
        assert model.metrics["asr"] == first.models[name].metrics["asr"]
        assert list(model.metrics["asr"].parts) == ["negative"]
        assert set(model.metrics) == {"acc", "asr", "false-triggers", "ece"}


def test_runs_with_other_attacks_share_the_clean_reference(recipe: Path) -> None:
    def reference() -> Stage:
        plan = survey(load_recipe(recipe), lambda text: None)
        assert plan.clean().key != plan.suspect().key
        return plan.clean()

    word = reference()
    shape(recipe, attack={"name": "sentence", "rate": 0.1, "target": "negative"})
    assert reference().key == word.key
    shape(recipe, seed=1)
    assert reference().key != word.key
