"""Thresholds, areas and what is not answered, against the dumbest code that gives the same."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from defensekit.components import Predictions
from defensekit.pipeline.detection import Scored, auroc, on_pairs, threshold, true_positives, unanswered
from defensekit_attacks.metrics import Accuracy, AttackSuccess, ExcessAttackSuccess

# Few values, so that there are ties.
SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40).map(np.array)
FEW = settings(max_examples=30, deadline=None)
RATE = st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.29, 0.5])


@FEW
@given(clean=SCORES, rate=RATE)
def test_a_threshold_is_the_least_that_flags_no_more(clean: np.ndarray, rate: float) -> None:
    good = [limit for limit in clean if round((clean > limit).sum(), 9) <= rate * len(clean) + 1e-9]
    assert threshold(clean, rate) == min(good)


@FEW
@given(triggered=SCORES, plain=SCORES)
def test_the_area_is_that_of_the_pairs_and_of_scikit_learn(triggered: np.ndarray, plain: np.ndarray) -> None:
    pairs = [float(a > b) + 0.5 * float(a == b) for a in triggered for b in plain]
    labels = [1] * len(triggered) + [0] * len(plain)
    area = auroc(triggered, plain)
    assert area == pytest.approx(np.mean(pairs)) == pytest.approx(roc_auc_score(labels, [*triggered, *plain]))
    assert auroc(plain, triggered) == pytest.approx(1 - area)
    assert auroc(np.exp(triggered), np.exp(plain)) == pytest.approx(area)  # of their order alone


@FEW
@given(triggered=SCORES, plain=SCORES, rate=RATE)
def test_true_positives_are_counted_above_the_plain_rows_threshold(
    triggered: np.ndarray, plain: np.ndarray, rate: float
) -> None:
    limit = threshold(plain, rate)
    assert true_positives(rate, triggered, plain) == pytest.approx(
        sum(one > limit for one in triggered) / len(triggered)
    )


@FEW
@given(data=st.data())
def test_statistics_of_many_resamples_are_those_of_each(data: st.DataObject) -> None:
    many = np.array(data.draw(st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=6), min_size=2, max_size=4)))
    for statistic in (auroc, lambda a, b: true_positives(0.25, a, b)):
        assert statistic(many, many[::-1]).tolist() == [
            float(statistic(a, b)) for a, b in zip(many, many[::-1], strict=True)
        ]


def scored(scores: list[float], ids: list[int]) -> Scored:
    return Scored(np.array(scores), np.array(ids))


def test_rows_are_compared_with_themselves() -> None:
    plain = scored([0.0, 9.0, 1.0, 9.0], [3, 8, 5, 9])  # 8 and 9 have the target's label: they get no trigger
    measured = on_pairs(auroc, scored([2.0, 1.5], [5, 3]), plain, seed=0)
    assert (measured.value, measured.low, measured.high, measured.rows) == (1.0, 1.0, 1.0, 2)
    from_a_file = on_pairs(auroc, scored([2.0, 1.5], [-1, -2]), plain, seed=0)
    assert from_a_file.value == 0.5


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_an_interval_holds_what_other_rows_give(shift: float) -> None:
    rng, hits = np.random.default_rng(0), 0
    draw: Callable[[int], Scored] = lambda n: scored([*rng.normal(0, 1, n)], [*range(n)])  # noqa: E731
    true = 0.5 if shift == 0 else 0.760250  # the normal law's at 1 / sqrt(2)
    for seed in range(40):
        triggered = draw(60)
        measured = on_pairs(auroc, scored([*(triggered.scores + shift)], [*range(60)]), draw(60), seed)
        hits += measured.low <= true <= measured.high
    assert hits >= 33


def predictions(answers: list[int], labels: list[int], ids: list[int]) -> Predictions:
    logits = np.eye(2, dtype=np.float32)[answers]
    return Predictions(logits, np.array(labels), 1, ("no", "yes"), 0, np.array(ids))


def test_what_is_flagged_is_neither_right_nor_the_target() -> None:
    plain = predictions([0, 1, 1, 0], [0, 1, 0, 1], [1, 2, 3, 4])
    triggered = predictions([1, 1], [0, 0], [3, 1])
    flagged = {"plain": np.array([2, 3]), "triggered": np.array([3])}
    kept = unanswered(plain, flagged, "plain")
    assert kept.answers().tolist() == [0, 2, 2, 0]
    assert kept.name(2) == "not answered"
    assert kept.logits.dtype == np.float32
    assert Accuracy().measure(kept).value == 0.25
    asr = AttackSuccess().measure(unanswered(triggered, flagged, "triggered"))
    assert (asr.value, asr.parts.keys()) == (0.5, {"no"})
    both = unanswered(triggered.beside(plain), flagged, "both")
    assert both.paired
    assert both.plain
    assert both.plain.answers().tolist() == [2, 0]  # row 3, then row 1
    assert ExcessAttackSuccess().measure(both).value == 0.5
    assert plain.answers().tolist() == [0, 1, 1, 0]
