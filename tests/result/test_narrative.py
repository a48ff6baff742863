"""A verdict claims no more than was measured."""

from typing import Any

import pytest

from defensekit.result.model_card import card
from defensekit.result.narrative import search, story, verdict
from defensekit.result.schema import ModelResult, Result


def purified_as(result: Result, **changes: Any) -> Result:
    """The same run, whose purified model has other facts."""
    changed = result.model_copy(deep=True)
    changed.models["purified"] = ModelResult(**{**dict(changed.models["purified"]), **changes})
    return changed


@pytest.mark.parametrize(
    ("tried", "unjudged", "told", "ends"),
    [
        (900, [], "No word was found that turns the suspect's answers; ", "was not looked for."),
        (900, ["positive"], "No word was found that turns the suspect's answers; ", "as the suspect sees them."),
        (0, ["negative", "positive"], "No trigger was looked for (too few clean rows ", "is gone, is not known."),
    ],
)
def test_a_search_is_told_as_far_as_it_went(
    result: Result, tried: int, unjudged: list[str], told: str, ends: str
) -> None:
    searched = purified_as(result, triggers=[], tried=tried, unjudged=unjudged)
    assert verdict(searched).removed is None
    assert searched.models["purified"].found_nothing is (tried > 0 and not unjudged)
    text = verdict(searched).text
    assert text.startswith(told)
    assert text.endswith(ends)
    [sentence] = search(searched)
    assert sentence in story(searched)
    for label in ("negative", "positive"):
        assert (repr(label) in text + sentence) is (tried > 0 and label in unjudged)
    assert ("tried 900 words" in sentence) is (tried > 0)
    assert ("No words were tried: too few" in sentence) is not (tried > 0)


def test_a_selection_of_nothing_reset_nothing(result: Result) -> None:
    counts = result.models["purified"].reset
    assert counts is not None
    for reset in (None, counts.model_copy(update={"selected": 0})):
        told = verdict(purified_as(result, reset=reset))
        assert not told.removed
        assert told.text.startswith("Nothing was reset: ")
    assert told.text.endswith(" took no weight.")


@pytest.mark.parametrize(
    ("before", "after", "removed", "told"),
    [
        ({"word": 0.9, "phrase": 0.8}, {"word": 0.02, "phrase": 0.1}, True, "no longer work: answers turned by"),
        ({"word": 0.9, "phrase": 0.8}, {"word": 0.02, "phrase": 0.5}, False, "Planted triggers still work"),
        ({"word": 0.9, "phrase": 0.1}, {"word": 0.02, "phrase": 0.3}, True, "by a word 90% before and 2% after."),
        ({"word": 0.03, "phrase": 0.02}, {"word": 0.02, "phrase": 0.02}, None, "No trigger was looked for"),
    ],
)  # fmt: skip
def test_planted_triggers_that_never_worked_tell_nothing(
    result: Result, before: dict[str, float], after: dict[str, float], removed: bool | None, told: str
) -> None:
    changed = result.model_copy(deep=True)
    assert changed.chosen is not None
    changed.chosen.suspect_planted = before
    for trial in changed.curve:
        trial.planted = after
    found = verdict(changed)
    assert found.removed is removed
    assert told in found.text
    assert ("phrase" in found.text) is (before["phrase"] > 0.2)


def test_the_card_says_what_kind_of_model_it_is(result: Result) -> None:
    assert "pipeline_tag: text-classification\n" in card(result)
    assert result.attack is not None
    changes = {"data": {**result.data, "labels": []}, "attack": {**result.attack, "target": "I refuse."}}
    of_texts = result.model_copy(update=changes)
    assert "pipeline_tag: text-generation\n" in card(of_texts)
    assert "text-classification" not in card(of_texts)
