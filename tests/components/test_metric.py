"""Answers of any number of labels, counted against scikit-learn's definitions by hand."""

import numpy as np
import pytest

from defensekit.components import Measured, Metric, Predictions
from defensekit.components.metric import flaw
from defensekit.testing.checks.metrics import _cases
from defensekit.text import in_words
from defensekit_attacks.metrics import (
    Accuracy,
    AttackSuccess,
    CalibrationError,
    ExcessAttackSuccess,
    FalseTriggers,
    TriggeredAccuracy,
)

LOGITS = np.array([[2, -1], [1, 1], [-1, -2], [3, -4], [-1, 5]], dtype=np.float32)
TRUE = np.array([[1, 0], [1, 0], [0, 0], [0, 0], [0, 1]])
SEVERAL = Predictions(LOGITS, TRUE, target=0, names=("odd", "warm"), ids=np.arange(5))


def test_a_row_is_right_with_its_whole_set_of_labels() -> None:
    assert SEVERAL.answers().tolist() == [[1, 0], [1, 1], [0, 0], [1, 0], [0, 1]]
    assert SEVERAL.right().tolist() == [True, False, True, False, True]
    measured = Accuracy().measure(SEVERAL)
    assert (measured.value, measured.rows, SEVERAL.accuracy()) == (0.6, 5, 0.6)
    assert [SEVERAL.shown(row) for row in range(5)] == ["odd", "odd, warm", "none", "odd", "warm"]
    assert in_words((0, 1), ["odd", "warm"]) == "warm"


def test_the_target_is_one_of_the_labels_and_rows_without_it_count() -> None:
    asr = AttackSuccess().measure(SEVERAL)
    assert (asr.value, asr.rows) == (1 / 3, 3)
    assert {name: (part.value, part.rows) for name, part in asr.parts.items()} == {"warm": (0.0, 1)}
    assert FalseTriggers().measure(SEVERAL) == asr
    assert TriggeredAccuracy().measure(SEVERAL).value == pytest.approx(2 / 3)
    plain = Predictions(-LOGITS, TRUE, target=0, ids=np.arange(5))
    assert ExcessAttackSuccess().measure(SEVERAL.beside(plain)).value == pytest.approx(1 / 3 - 2 / 3)


@pytest.mark.parametrize(
    "metric", [Accuracy(), AttackSuccess(), ExcessAttackSuccess(), FalseTriggers(), TriggeredAccuracy()]
)
def test_the_conformance_kit_tries_sets_of_labels_where_a_metric_is_for_them(metric: Metric) -> None:
    cases = _cases(metric)
    sets = [case for case in cases.values() if isinstance(case, Predictions) and case.several]
    assert len(sets) >= 5
    for case in sets:
        measured = metric.measure(case)
        assert metric.bounds[0] <= measured.low <= measured.value <= measured.high <= metric.bounds[1]
    assert not any(isinstance(case, Predictions) and case.several for case in _cases(CalibrationError()).values())


@pytest.mark.parametrize(
    ("metric", "numbers", "wrong"),
    [
        (Accuracy(), (0.5, 0.4, 0.6), None),
        (Accuracy(), (0.5, 0.6, 0.7), "measured 0.5, outside of its interval [0.6, 0.7]"),
        (CalibrationError(), (0.5, 0.6, 0.7), None),  # no mean over rows: a bootstrap's interval may lie beside it
        (CalibrationError(), (0.5, 0.7, 0.6), "gave the interval [0.7, 0.6], expected ends in order within 0 to 1"),
        (CalibrationError(), (0.5, 0.4, 1.1), "gave the interval [0.4, 1.1], expected ends in order within 0 to 1"),
        (Accuracy(), (float("nan"), 0.4, 0.6), "measured nan, outside of its bounds 0 to 1"),
        (Accuracy(), (0.5, 0.4, float("nan")), "gave the interval [0.4, nan], expected ends in order within 0 to 1"),
        (ExcessAttackSuccess(), (-0.5, -0.6, -0.4), None),
    ],
)
def test_a_number_lies_within_its_bounds_and_that_of_a_mean_within_its_interval(
    metric: Metric, numbers: tuple[float, float, float], wrong: str | None
) -> None:
    value, low, high = numbers
    measured = Measured(value=value, low=low, high=high, rows=9)
    assert flaw(metric, measured) == wrong
    whole = Measured(value=0.1, low=0.0, high=0.2, rows=9, parts={"of some": measured})
    assert flaw(metric, whole) == wrong
    assert flaw(metric, value) == "gave float, expected a Measured"
