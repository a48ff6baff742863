"""What the board says of rows: what can't be told apart shares a letter, numbers, badges."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.columns import shown
from defensekit.leaderboard.page import fails
from defensekit.leaderboard.redraw import interval, redrawn
from defensekit.leaderboard.row import Verification, VerifiedCell, read_row
from defensekit.leaderboard.scores import ACC, EXCESS, FAILED, HOST, SELF, THIRD, Scores, score
from defensekit.leaderboard.table import letters
from defensekit.leaderboard.ties import standings
from defensekit.leaderboard.tracks import Track

# -- ties --------------------------------------------------------------------------------------------------------------


def made_up(name: str, excess: float, acc: float, baseline: bool = False, rows: int = 400, seeds: int = 3) -> Scores:
    """A row with shares of two attacks; the same rows are hit in every one, as far as there are as many."""
    cells = [(attack, seed) for attack in ("word", "sentence") for seed in range(seeds)]
    hits = {
        metric: pd.Series(np.where(np.arange(rows) < round(abs(share) * rows), np.sign(share), 0).astype(int))
        for metric, share in {EXCESS: excess, ACC: acc}.items()
    }
    row: Any = SimpleNamespace(name=name, entry=SimpleNamespace(keys=SimpleNamespace(baseline=baseline)))
    track: Any = None
    clean = {cell: pd.Series(np.zeros(rows, dtype=int)) for cell in cells}
    return Scores(row, track, {metric: {cell: of.copy() for cell in cells} for metric, of in hits.items()}, clean)


def test_what_can_not_be_told_apart_shares_a_group() -> None:
    rows = [made_up("c", 0.5, 0.9), made_up("a", 0.10, 0.9), made_up("b", 0.1025, 0.9), made_up("d", 0.9, 0.9)]
    found = standings(rows)
    assert [(one.scores.name, one.group) for one in found.rows] == [("a", 0), ("b", 0), ("c", 1), ("d", 2)]
    assert found.apart == 2


def test_a_trigger_that_turns_a_model_away_is_no_less_than_none() -> None:
    rows = [made_up("anew", -0.1, 0.7), made_up("gone", 0.0, 0.9), made_up("left", 0.1, 0.9)]
    assert [(one.scores.name, one.group) for one in standings(rows).rows] == [("anew", 0), ("gone", 0), ("left", 1)]
    assert standings(rows).rows[0].interval[1] < 0, "what is shown is what was measured"
    anew = made_up("anew", -0.1, 0.9, baseline=True)
    assert list(standings([anew, rows[1]]).rows[1].no_better_than) == ["anew"]


def test_a_row_is_marked_that_a_trivial_one_is_as_good_as() -> None:
    rows = [
        made_up("tuned", 0.5, 0.9, baseline=True),
        made_up("anew", 0.0, 0.7, baseline=True),
        made_up("good", 0.1, 0.9),  # better than one by its ASR, than the other by its ACC
        made_up("bad", 0.5, 0.9),
        made_up("worst", 0.9, 0.5),
    ]
    marks = {one.scores.name: list(one.no_better_than) for one in standings(rows).rows}
    assert marks == {"tuned": [], "anew": [], "good": [], "bad": ["tuned"], "worst": ["anew", "tuned"]}


def test_an_interval_is_that_of_rows_and_of_seeds() -> None:
    low, high = interval(made_up("a", 0.25, 1.0, seeds=1, rows=400).redrawn[EXCESS])
    # Of one seed it is the rows' alone: two attacks are asked about the same 400.
    wanted = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert (0.25 - low, high - 0.25) == (pytest.approx(wanted, rel=0.1), pytest.approx(wanted, rel=0.1))
    # Seeds that are asked about the same rows say no more of these; with rows of their own they do.
    low, high = interval(made_up("a", 0.25, 1.0, rows=400).redrawn[EXCESS])
    assert (0.25 - low, high - 0.25) == (pytest.approx(wanted, rel=0.1), pytest.approx(wanted, rel=0.1))
    apart = {
        cell: values.set_axis(values.index + 1000 * cell[1])
        for cell, values in made_up("a", 0.25, 1.0).paired[EXCESS].items()
    }
    low, high = interval(redrawn(apart))
    assert high - low < 1.7 * wanted
    values = {("word", seed): pd.Series([seed % 2] * 100) for seed in range(10)}  # rows say nothing, seeds do
    low, high = interval(redrawn(values))
    assert (0.5 - low, high - 0.5) == (pytest.approx(0.31, abs=0.1), pytest.approx(0.31, abs=0.1))
    assert interval(redrawn(values) - redrawn(values)) == (0, 0)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_numbers(made: Path, track: Track) -> None:
    row = read_row(made)
    numbers = score(row, Checker(track)).numbers()
    word, innocent = row.cells["word", 3].models, row.cells["unpoisoned", 3].models
    before, after = word["suspect"].metrics, word["purified"].metrics
    assert numbers["excess_asr"] == numbers["excess_asr_worst"] == after["excess-asr"].value
    assert numbers["acc_lost"] == pytest.approx(before["acc"].value - after["acc"].value)
    harm = innocent["suspect"].metrics["acc"].value - innocent["purified"].metrics["acc"].value
    assert numbers["harm"] == pytest.approx(harm)
    assert numbers["asr_clean"] == word["clean"].metrics["asr"].value
    assert numbers["fidelity"] == pytest.approx(
        (1 - after["asr"].value / before["asr"].value) * after["acc"].value / before["acc"].value
    )
    assert numbers["excess_asr_clean"] == word["clean"].metrics["excess-asr"].value
    assert numbers["bacc"] is None


@pytest.mark.parametrize(
    ("needs", "rows"),
    [
        (["base", "labels"], (24, 0)),
        (["base", "texts"], (0, 24)),
        (["labels", "texts"], (24, 0)),  # a row is handed out once
        (["base"], (0, 0)),
        ([], (0, 0)),
    ],
)
def test_rows_count_as_what_is_needed_of_them(
    needs: list[str], rows: tuple[int, int], made: Path, track: Track
) -> None:
    row = read_row(made)
    row.entry.keys.needs[:] = needs  # type: ignore[assignment]
    numbers = score(row, Checker(track)).numbers()
    assert (numbers["labelled_rows"], numbers["unlabelled_rows"]) == rows


def verified(by: str, row: str, same: bool = True) -> Verification:
    cell = VerifiedCell(attack="word", seed=3, differing={"plain": 0.0, "triggered": 0.0 if same else 0.5}, inputs=[])
    given = {"by": by, "when": "2026-01-01T00:00:00Z", "on": {"device": "cpu"}, "isolated": True, "drawn_with": 0}
    return Verification(row=row, cells=[cell], same=same, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("by", "badge"),
    [
        ([], SELF),
        (["A. Nobody"], SELF),  # the author
        (["a.  nobody "], SELF),
        (["-A. Nobody"], FAILED),
        (["someone"], THIRD),
        (["someone", "Keeper"], HOST),
        (["keeper", "-someone"], FAILED),
    ],
)
def test_badges(by: list[str], badge: str, row: Path, track: Track) -> None:
    (row / "verifications").mkdir()
    for i, name in enumerate(by):
        one = verified(name.lstrip("-"), read_row(row).digest, not name.startswith("-"))
        (row / f"verifications/{i}.json").write_text(one.model_dump_json())
    assert score(read_row(row), Checker(track)).badge("keeper") == badge


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.12345, "0.123"), (-0.0001, "0.000"), (-0.5, "−0.500"), (0.0, "0.000")]
)
def test_numbers_as_they_are_shown(value: float | None, text: str) -> None:
    assert shown(value) == text


def test_letters() -> None:
    assert [letters(n) for n in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_where_it_fails() -> None:
    row = made_up("a", 0.5, 0.9)
    assert fails(row) == [("word", 0.5), ("sentence", 0.5)]
    for cell, rows in row.paired[EXCESS].items():
        rows[:] = ((cell[0] == "sentence") & (np.arange(400) < 300)).astype(int)
    assert fails(row) == [("sentence", 0.75)]
