"""The rules: by clean accuracy alone, and by what removes planted triggers."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit.components import Trial
from defensekit.recipe.loader import load_recipe
from defensekit_finepurifying.rules import AccuracyFloor, Planted
from tests.conftest import ROOT


def rule(values: list[float], **more: Any) -> AccuracyFloor:
    return AccuracyFloor(values=tuple(values), **more)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(deadline=None)
def test_the_rule_proposes_each_value_once_and_zero_always(values: list[float]) -> None:
    seen: list[Trial] = []
    while (value := rule(values).propose(seen)) is not None:
        seen.append(Trial(value, 0.5, 10))
        assert len(seen) <= len(values) + 1
    assert sorted(trial.value for trial in seen) == sorted({0.0, *values})


def test_the_largest_value_above_the_floor() -> None:
    seen = [Trial(0.0, 0.90, 100), Trial(0.3, 0.85, 100), Trial(0.5, 0.88, 100), Trial(0.7, 0.87, 100)]
    choice = rule([0.3, 0.5, 0.7]).choose(seen, Trial(0.0, 0.90, 100))
    assert (choice.value, choice.warning) == (0.5, None)
    assert "0.880" in choice.reason


def test_nothing_above_the_floor_is_zero_and_a_warning() -> None:
    only_zero = rule([0.5]).choose([Trial(0.0, 0.9, 100), Trial(0.5, 0.6, 100)], Trial(0.0, 0.9, 100))
    assert only_zero.value == 0
    assert "nothing is reset" in (only_zero.warning or "")
    nothing = rule([0.5]).choose([Trial(0.0, 0.7, 100), Trial(0.5, 0.6, 100)], Trial(0.0, 0.9, 100))
    assert nothing.value == 0
    assert "0.880" in (nothing.warning or "")


def test_the_floor_is_never_below_zero() -> None:
    assert "at least 0.000" in rule([0.5]).choose([Trial(0.0, 0, 9), Trial(0.5, 0, 9)], Trial(0.0, 0, 9)).reason


def test_where_a_lower_value_does_more_the_smallest_above_the_floor_is_taken() -> None:
    seen = [Trial(0.0, 0.60, 100), Trial(1.0, 0.87, 100), Trial(10.0, 0.89, 100), Trial(100.0, 0.9, 100)]
    untouched = Trial(math.inf, 0.90, 100)
    choice = rule([1, 10, 100]).choose(seen, untouched)
    assert (choice.value, choice.warning) == (10.0, None)
    assert choice.reason == "the smallest value with a clean dev accuracy of at least 0.880"
    nothing = rule([1, 10], max_drop=0).choose(seen[:3], untouched)
    assert nothing.value == 10
    assert (nothing.warning or "").endswith("selector.fraction = 10 is taken: the value that does least")


def test_just_below_the_floor_fails_however_few_the_rows() -> None:
    assert rule([0.5], max_drop=0.06).choose([Trial(0, 0.9, 10), Trial(0.5, 0.8, 10)], Trial(0, 0.9, 10)).value == 0


@pytest.mark.parametrize("rows", [3, 7, 10, 256, 600])
def test_exactly_at_the_floor_passes_whatever_the_rounding(rows: int) -> None:
    for lost in range(1, rows):
        suspect, trial = Trial(0, 1.0, rows), Trial(0.5, (rows - lost) / rows, rows)
        assert rule([0.5], max_drop=lost / rows).choose([Trial(0, 1.0, rows), trial], suspect).value == 0.5


def test_a_rule_never_takes_a_threshold_of_0_that_nobody_gave() -> None:
    seen = [Trial(0.0, 0.9, 100), Trial(3.0, 0.9, 100)]
    assert rule([3.0]).choose(seen, Trial(math.inf, 0.9, 100)).value == 3
    assert rule([0.0, 3.0]).choose(seen, Trial(math.inf, 0.9, 100)).value == 0


def tried(value: float, accuracy: float, **planted: float) -> Trial:
    return Trial(value, accuracy, 100, planted)


def planted_rule(values: list[float], **more: Any) -> Planted:
    return Planted(values=tuple(values), **more)


def test_of_what_removes_planted_triggers_the_most_accurate_is_taken() -> None:
    seen = [
        tried(0, 0.9, word=0.7, phrase=0.8),
        tried(0.5, 0.88, word=0.0, phrase=0.3),  # one family is left
        tried(0.7, 0.86, word=0.05, phrase=0.1),
        tried(0.9, 0.84, word=0.0, phrase=0.0),
    ]
    choice = planted_rule([0.5, 0.7, 0.9]).choose(seen, tried(0.0, 0.91, word=0.9, phrase=0.8))
    assert (choice.value, choice.warning) == (0.7, None)
    assert "0.860 (suspect 0.910)" in choice.reason
    assert (
        planted_rule([0.5, 0.7, 0.9], max_planted=0.3).choose(seen, tried(0.0, 0.91, word=0.9, phrase=0.8)).value == 0.5
    )


def test_where_no_value_removes_them_the_one_that_leaves_least_is_taken_and_said() -> None:
    seen = [tried(0, 0.9, word=0.7), tried(0.5, 0.88, word=0.4), tried(0.9, 0.5, word=0.2)]
    choice = planted_rule([0.5, 0.9]).choose(seen, tried(0.0, 0.9, word=0.9))
    assert choice.value == 0.9
    assert choice.warning
    assert "least is 20%" in choice.warning


def test_of_equal_values_the_one_that_does_more_is_taken() -> None:
    seen = [tried(0, 0.8, word=0.0), tried(1, 0.8, word=0.0), tried(9, 0.8, word=0.0)]
    assert planted_rule([1, 9]).choose(seen, tried(0.0, 0.9, word=0.9)).value == 9
    # Where lower values do more, 0 is one only if it was asked for.
    assert planted_rule([1, 9]).choose(seen, tried(math.inf, 0.9, word=0.9)).value == 1


def test_a_family_that_could_not_be_planted_does_not_count() -> None:
    seen = [tried(0, 0.9, word=0.0, phrase=0.9), tried(0.5, 0.85, word=0.0, phrase=0.0)]
    rule = planted_rule([0.5])
    assert rule.choose(seen, tried(0, 0.9, word=0.2, phrase=1.0)).value == 0.5
    assert rule.choose(seen, tried(0, 0.9, word=0.9, phrase=0.2)).value == 0
    nothing = rule.choose(seen, tried(0, 0.9, word=0.2, phrase=0.2))
    assert nothing.value == 0.5
    assert nothing.warning
    assert "does most" in nothing.warning


@pytest.mark.parametrize(
    ("over", "parts"),
    [
        ("purifier.0.keep", ["defense.purifier=[{name: interpolate, keep: 0.5}]"]),
        ("selector.spare", ["defense.selector={name: units, unit: row, fraction: 0.2}"]),
    ],
)
def test_parameters_of_which_lower_values_do_more_say_so(over: str, parts: list[str]) -> None:
    loaded = load_recipe(ROOT / "recipes/pico.yaml", ["defense.choose=", "defense.compare={}", *parts])
    assert loaded.defense.nothing(over) == math.inf
    rule = AccuracyFloor(over=over, values=(0.25, 0.5, 1.0), max_drop=0.02)
    seen = [Trial(value, 0.9, 100) for value in (0.0, 0.25, 0.5, 1.0)]
    assert rule.choose(seen, Trial(loaded.defense.nothing(over), 0.9, 100)).value == 0.25
