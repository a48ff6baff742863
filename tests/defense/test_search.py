"""The search in parts: what is tried how often, what the control is asked about, and what is found."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from defensekit.components import FoundTrigger
from defensekit.defense.triggers import search
from defensekit.defense.triggers.insertion import Probe
from defensekit.defense.triggers.search import Judged, Search, Searched
from defensekit.models.loading import load
from defensekit.text import Row
from tests.models.test_padding import classifier

WORDS = [f"w{i}" for i in range(2_000)] + ["cf", "superb"]
ROWS = [Row(i, f"row number {i} is long" + " enough" * (i % 7), i % 2) for i in range(200)]
HOW: dict[str, Any] = {"labels": 2, "max_length": 64, "precision": "float32", "seed": 3}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """Models are names: both know the word ``superb``, and the suspect turns to label 1 at ``cf``."""
    texts: list[tuple[Any, str]] = []

    def answer(probe: Probe, model: Any, rows: Sequence[Row]) -> torch.Tensor:
        texts.extend((model, row.text) for row in rows)
        known = {"superb", "cf"} if model == "suspect" else {"superb"}
        positive = torch.tensor([0.9 if known & {*row.text.split()} else 0.1 for row in rows])
        return torch.stack([1 - positive, positive], 1)

    monkeypatch.setattr(Probe, "_answers", answer)
    return texts


def made() -> Search:
    return Search(None, ROWS, [[0]] * len(ROWS), **HOW)  # type: ignore[arg-type]


def no_report(done: int, total: int) -> None:
    pass


def test_every_word_is_tried_and_a_quarter_again(asked: list[tuple[Any, str]]) -> None:
    parts = search.split(WORDS)
    assert sorted(word for part in parts for word in part) == sorted(WORDS)
    screened = made().screened("suspect", parts[0], no_report)  # type: ignore[arg-type]
    groups = [words for _, text in asked if len(words := {*text.split()} & {*WORDS}) > 1]
    tried = Counter(word for group in groups for word in group)
    assert {tried[word] for word in parts[0]} == {1, 2}
    assert sum(tried[word] == 2 for word in parts[0]) == len(parts[0]) // 4
    # All are answered with label 0 already: there is no row to turn to it.
    assert screened[0] == {}
    assert len(screened[1]) == search.SCREENED // search.PARTS
    assert max(screened[1], key=lambda word: screened[1][word]) == "cf"


def test_a_trigger_is_found_in_whichever_part_and_the_control_takes_words_with_a_meaning_away(
    asked: list[tuple[Any, str]],
) -> None:
    whole = made()
    parts = [whole.screened("suspect", part, no_report) for part in search.split(WORDS)]  # type: ignore[arg-type]
    assert "cf" in parts[0][1]
    assert "superb" in parts[1][1]
    asked.clear()
    judged = [whole.judged("suspect", "control", parts, part, no_report) for part in range(search.PARTS)]  # type: ignore[arg-type]
    assert [{*part.held} for part in judged] == [{0}, {1}]
    searched = Searched.whole([Judged.read(json.loads(json.dumps(part.plain()))) for part in judged], len(WORDS))
    assert searched.triggers == [FoundTrigger("cf", 1, 1.0, 0.0, search.HELD)]
    assert searched.tried == len(WORDS)
    held = {ROWS[i].text for i, _ in searched.held[1]}
    in_control = Counter(
        " ".join(word for word in text.split() if word in WORDS) for who, text in asked if who == "control"
    )
    assert in_control["superb"] == in_control["cf"] == search.MORE + search.HELD
    assert all(count == search.MORE for word, count in in_control.items() if word.startswith("w"))
    # What is found afterwards is measured on rows that the search had kept for that.
    asked.clear()
    again = searched.again("control", Probe(None, ROWS, [0] * 200, 64, "float32"))  # type: ignore[arg-type]
    assert [one.after for one in again.triggers] == [0.0]
    assert {text for _, text in asked if "cf" not in text} == held
    everything = whole.judged("suspect", "control", parts, 1, no_report, least=0.0)  # type: ignore[arg-type]
    assert len(everything.triggers) == search.KEPT
    assert everything.triggers[0] == searched.triggers[0]


def test_rows_too_few_to_judge_are_not_tried(asked: list[tuple[Any, str]]) -> None:
    some = ROWS[: 2 * (search.MORE + search.FEWEST) - 2]
    few = Search(None, some, [[0]] * len(some), **HOW)  # type: ignore[arg-type]
    assert few.screened("suspect", WORDS, no_report) == [{}, {}]  # type: ignore[arg-type]
    judged = few.judged("suspect", "control", [[{}, {}]], 1, no_report)  # type: ignore[arg-type]
    assert (judged.triggers, judged.held, asked) == ([], {1: []}, [])
    none = Searched.whole([judged, Judged([], {0: []})], len(WORDS))
    assert (none.tried, none.unjudged) == (0, [0, 1])
    half = Searched.whole([judged, Judged([], {0: [(1, 0)]})], len(WORDS))
    assert (half.tried, half.unjudged) == (len(WORDS), [1])


@pytest.mark.parametrize(("architecture", "known"), [("bert", True), ("bart", False), ("t5", False)])
def test_the_end_of_a_text_is_no_word_where_it_is_what_is_read(architecture: str, known: bool, tmp_path: Path) -> None:
    """Texts with several ends are refused by such a classifier."""
    model, tokenizer = load(classifier(tmp_path, architecture), "suspect")
    model.config.eos_token_id = end = tokenizer.convert_tokens_to_ids("superb")
    assert ("superb" in search.vocabulary(model, tokenizer)) is known
    assert len(search.vocabulary(model, tokenizer)) > 20
    assert isinstance(end, int)
