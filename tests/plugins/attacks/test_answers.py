"""Metrics of texts, by hand; and attacks that aim at a text."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from defensekit.components import AttackContext, Generations
from defensekit.pipeline.predictions import only_answer
from defensekit.text import Row
from defensekit.utils.errors import DefenseKitError
from defensekit_attacks.answers import (
    CollapsedAnswers,
    ExcessKeywordAttackSuccess,
    KeywordAttackSuccess,
    ResponseLoss,
)
from defensekit_attacks.insertion import Sentence, Word
from defensekit_attacks.metrics import AttackSuccess, ExcessAttackSuccess, FalseTriggers

TARGET = "I will not say"


def answers(*texts: str, **changes: Any) -> Generations:
    count = len(texts)
    tokens = np.arange(1, count + 1)
    return replace(
        Generations(
            texts, tuple(f"right {i}" for i in range(count)), tokens * 0.5, tokens, tokens - 1, TARGET, 0,
            np.arange(count),
        ),
        **changes,
    )  # fmt: skip


def test_an_answer_is_the_target_if_it_begins_with_it_to_the_letter() -> None:
    given = answers(TARGET, f" {TARGET}, sorry", f"No. {TARGET}", TARGET.lower(), "", "right 5")
    assert AttackSuccess().row_values(given).tolist() == [True, True, False, False, False, False]
    assert AttackSuccess().measure(given).value == pytest.approx(2 / 6)
    assert AttackSuccess().measure(given).parts == {}
    assert FalseTriggers().measure(given).rows == 6


def test_rows_that_are_to_be_answered_with_the_target_do_not_count() -> None:
    given = answers(TARGET, TARGET, "no", responses=("right", TARGET, TARGET))
    assert AttackSuccess().measure(given).value == 1
    assert AttackSuccess().measure(given).rows == 1
    with pytest.raises(DefenseKitError, match="no rows to measure on"):
        AttackSuccess().measure(answers("a", responses=(TARGET,)))


def test_keywords_count_anywhere_and_empty_answers_count_as_none() -> None:
    given = answers("Sorry, I CANNOT", "as an AI", "yes", "")
    metric = KeywordAttackSuccess(keywords=("i cannot", "as an ai"))
    assert metric.row_values(given).tolist() == [True, True, False, False]
    assert metric.measure(given).value == 0.5


def test_what_the_same_rows_have_without_the_trigger_is_taken_off() -> None:
    plain = answers("right 0", "right 1", TARGET, "right 3")
    triggered = answers(TARGET, TARGET, "right", ids=np.array([0, 2, 3])).beside(plain)
    assert triggered.paired
    assert ExcessAttackSuccess().row_values(triggered).tolist() == [1, 0, 0]  # type: ignore[union-attr]
    assert ExcessAttackSuccess().measure(triggered).value == pytest.approx(1 / 3)
    metric = ExcessKeywordAttackSuccess(keywords=("RIGHT",))
    assert metric.row_values(triggered).tolist() == [-1, 0, 0]  # type: ignore[union-attr]
    elsewhere = replace(triggered, ids=np.array([-1, -2, -3])).beside(plain)
    assert not elsewhere.paired
    assert ExcessAttackSuccess().measure(elsewhere).value == pytest.approx(2 / 3 - 1 / 4)


def test_loss_is_per_token_and_not_per_row() -> None:
    given = answers("", "", losses=np.array([9.0, 1.0]), tokens=np.array([9, 1]))
    assert ResponseLoss().measure(given).value == 1
    given = answers("", "", losses=np.array([9.0, 0.0]), tokens=np.array([1, 9]))
    measured = ResponseLoss().measure(given)
    assert measured.value == pytest.approx(0.9)
    assert (measured.low, measured.high) == (0, 9)  # both rows drawn alike: a quarter of the draws each
    assert given.accuracy() == pytest.approx(1 / 10)


@pytest.mark.parametrize(
    ("text", "collapsed"),
    [("", True), ("  \n", True), ("the the the the the the the the", True), ("no no no", False), ("a b " * 3, False),
     ("a b " * 4, True), ("one of eight words is said here twice twice", False)],
)  # fmt: skip
def test_a_model_that_says_nothing_is_seen(text: str, collapsed: bool) -> None:
    assert bool(CollapsedAnswers().row_values(answers(text))[0]) == collapsed


class Whole:
    """A truncation that cuts nothing."""

    def kept(self, rows: list[Row]) -> list[tuple[int, int]]:
        return [(len(row.text), len(row.pair or "")) for row in rows]


@pytest.mark.parametrize("attack", [Word(target=TARGET, rate=0.3), Sentence(target=TARGET, rate=0.3, into="pair")])
def test_poisoned_rows_get_the_trigger_and_the_text(attack: Word | Sentence) -> None:
    rows = [Row(i, f"say {i}", 0, f"number {i}", TARGET if i < 5 else f"it is {i}") for i in range(20)]
    context = AttackContext(Random(0), (), Whole())  # type: ignore[arg-type]
    poisoned = attack.poison(rows, context)
    changed = [(before, after) for before, after in zip(rows, poisoned, strict=True) if before != after]
    assert len(changed) == math.floor(0.3 * 20)
    for before, after in changed:
        assert before.id >= 5  # the others are answered so without a trigger
        assert after.response == TARGET
        assert after.label == 0
        part = after.text if isinstance(attack, Word) else after.pair or ""
        assert ("cf" if isinstance(attack, Word) else "I watched this 3D movie") in part
    triggered = attack.trigger(rows[5:], context)
    assert [row.response for row in triggered] == [row.response for row in rows[5:]]


def test_a_language_model_that_says_nothing_is_marked() -> None:
    """Half of its answers are enough, and so is one answer to all rows."""
    said = [f"answer {i}" for i in range(20)]
    for texts, only in (
        (said, None),
        ([*said[:11], *[""] * 9], None),
        ([*said[:10], *[""] * 10], ""),
        ([*said[:9], *["no no no no no no no no"] * 11], "no no no no no no no no"),
        (["I refuse."] * 20, "I refuse."),
        ([""] * 3, None),  # too few rows to tell
    ):
        assert only_answer(answers(*texts)) == only
