"""The board's figures: every point has its own label and nothing overlaps or leaves the picture."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from defensekit.leaderboard.figures import Axis, apart, curve, tradeoff
from defensekit.leaderboard.scores import RETUNED


def table(*points: tuple[float | None, float]) -> Any:
    records = [
        {
            "name": f"row-{i}", "title": f"Row {i}", "group": "A", "baseline": i == 0,
            "acc_lost": x, "excess_asr": y, "excess_asr_low": y, "excess_asr_high": y,
        }
        for i, (x, y) in enumerate(points)
    ]  # fmt: skip
    return SimpleNamespace(standings=SimpleNamespace(rows=records), record=lambda record: record)


@pytest.mark.parametrize("points", [[(0.0, 0.8)], [(0.0, 0.8)] * 40, [(-0.028, 0.551), (0.0, 0.837), (0.001, 0.836)]])
def test_every_point_has_a_label(points: list[tuple[float, float]]) -> None:
    plot = tradeoff(table(*points))
    assert plot
    assert {one.label for one in plot.points} == {f"Row {i} (A)" for i in range(len(points))}
    places = sorted(one.label_y for one in plot.points)
    assert all(after - before >= 15 for before, after in pairwise(places))
    assert places[0] >= 10
    assert places[-1] <= plot.height
    assert all(60 <= one.x <= 560 and 10 <= one.y <= plot.height for one in plot.points)


def test_a_point_says_its_numbers() -> None:
    assert tradeoff(table((None, 0.5))) is None
    plot = tradeoff(table((None, 0.5), (0.01, -0.02)))
    assert plot
    [point] = plot.points
    assert point.says == "Row 1: excess ASR −0.020 (−0.020 to −0.020), ACC lost 0.010"


def test_a_long_title_is_cut_in_its_label_alone() -> None:
    one = table((0.0, 0.5))
    one.standings.rows[0]["title"] = "x" * 200
    plot = tradeoff(one)
    assert plot
    assert len(plot.points[0].label) == len("x" * 39 + "… (A)")
    assert plot.points[0].says.startswith("x" * 200)


def test_labels_are_moved_no_further_than_they_must() -> None:
    assert apart([10, 50, 90], 15, 100) == [10, 50, 90]
    assert apart([10, 12, 98], 15, 100) == [10, 25, 98]
    assert apart([95, 98], 15, 100) == [85, 100]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 0.87, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-0.045, 0.0, ["−0.05", "−0.04", "−0.03", "−0.02", "−0.01", "0.00"]),
        (0.0, 0.0, ["0.0000", "0.0002"]),
    ],
)
def test_ticks(low: float, high: float, ticks: list[str]) -> None:
    axis = Axis(low, high, 0, 100)
    assert [text for _, text in axis.ticks] == ticks
    assert (axis.at(axis.ticks[0][0]), axis.at(axis.ticks[-1][0])) == (0, 100)


def test_the_curve_of_an_attack() -> None:
    numbers: dict[str, float | None] = {"asr_before": 1.0, "asr": 0.1, "asr_clean": 0.05}
    back = {f"asr_{of}retuned_{rows}": None for rows in RETUNED for of in ("", "clean_")}
    short = curve("word", {**numbers, **back})
    assert short
    assert [step for _, step in short.steps] == ["before", "after"]
    assert [y for _, y in short.ours] == [10, 91]
    assert short.says == "ASR of word: before 1.000, after 0.100"
    full = curve("word", {**numbers, **back, "asr_retuned_5": 0.5, "asr_clean_retuned_5": 0.3})
    assert full
    assert [step for _, step in full.steps] == ["before", "after", "5 rows"]
    assert [round(y) for _, y in full.clean] == [96, 96, 73]
    assert curve("bias", {}) is None
