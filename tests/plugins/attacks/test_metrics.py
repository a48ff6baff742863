"""Metrics: they count what they say, a share's interval is Wilson's, and each fits the attack it is used on."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import defensekit
from defensekit.components import Predictions
from defensekit.pipeline.plan import Stage
from defensekit.pipeline.preflight import survey
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit_attacks.metrics import Accuracy, AttackSuccess, BiasedAccuracy, CalibrationError, FalseTriggers, share
from tests.conftest import shape

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


def test_a_bias_is_measured_by_biased_accuracy(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "mine.py").write_text(BIAS)
    shape(recipe, plugins=["mine.py"], attack="mark", defense__choose=None, training__epochs=3)
    result = defensekit.run(recipe, tmp_path / "w")
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


def test_metrics_come_from_stored_answers(recipe: Path, tmp_path: Path) -> None:
    shape(recipe, training__epochs=1, data__train=48, defense__choose=None)
    first = defensekit.run(recipe, tmp_path / "w")
    shape(recipe, metrics=["acc", "asr", "false-triggers", {"name": "ece", "bins": 5}])
    again = defensekit.run(recipe, tmp_path / "w")
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
