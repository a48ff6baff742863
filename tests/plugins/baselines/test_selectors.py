"""Units and fractions per row: exactly the best, by the dumbest code."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from defensekit.components import Selector
from defensekit.components.tensors import Scored, Scores
from defensekit.defense.selection import select
from defensekit.utils.errors import DefenseKitError
from defensekit_baselines.selectors import FractionPerRow, Units


@st.composite
def some_scores(draw: st.DrawFn) -> Scores:
    tensors = {}
    for i in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 4)), 2 * draw(st.integers(1, 3)))
        shape = shape if draw(st.booleans()) else shape[:1]
        count = math.prod(shape)
        values = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=count, max_size=count))
        eligible = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        layer = f"layer.{i % 2}"
        tensors[f"{layer}.t{i}"] = Scored(torch.tensor(values).view(shape), torch.tensor(eligible).view(shape), layer)
    return Scores(tensors, head_size=2)


def by_hand(scores: Scores, unit: str) -> list[tuple[float, str, str, list[tuple[int, ...]]]]:
    """(score, layer, tensor, places) of every unit that has an eligible place, best first."""
    units: dict[tuple[str, int], list[tuple[int, ...]]] = {}
    for name, scored in scores.items():
        for place in torch.nonzero(scored.eligible).tolist():
            if unit in ("column", "head") and len(place) == 1:
                continue
            number = {"row": place[0], "tensor": 0, "column": place[-1], "head": place[-1] // 2}[unit]
            units.setdefault((name, number), []).append(tuple(place))
    found = [
        (sum(float(scores[name].score[p]) for p in places) / len(places), scores[name].layer, name, places)
        for (name, _), places in sorted(units.items())
    ]
    return sorted(found, key=lambda one: -one[0])


@given(
    scores=some_scores(),
    unit=st.sampled_from(["row", "column", "head", "tensor"]),
    scope=st.sampled_from(["global", "layer", "tensor"]),
    fraction=st.floats(0, 1),
    spare=st.integers(0, 2),
)
@settings(deadline=None)
def test_units_are_the_best_by_their_mean(scores: Scores, unit: Any, scope: Any, fraction: float, spare: int) -> None:
    got = select(scores, Units(unit=unit, fraction=fraction, scope=scope, spare=spare))
    every = by_hand(scores, unit)
    spared: list[Any] = []
    for layer in {one[1] for one in every}:
        spared += sorted((one for one in every if one[1] == layer), key=lambda one: one[0])[:spare]
    expected: set[tuple[str, tuple[int, ...]]] = set()
    for group in {"global": {""}, "layer": {one[1] for one in every}, "tensor": {one[2] for one in every}}[scope]:
        inside = [one for one in every if group in ("", one[1], one[2])]
        for one in [one for one in inside if one not in spared][: round(fraction * len(inside))]:
            expected.update((one[2], place) for place in one[3])
    assert {(name, tuple(p)) for name, chosen in got.items() for p in torch.nonzero(chosen).tolist()} == expected


def test_a_count_of_units() -> None:
    scored = Scored(torch.arange(12.0).view(4, 3), torch.ones(4, 3, dtype=torch.bool), "a")
    scores = Scores({"a": scored})
    assert Units(unit="row", count=2).select(scores)["a"].all(1).tolist() == [False, False, True, True]
    assert Units(unit="row", count=9).select(scores)["a"].all()
    assert Units(unit="row", count=0).takes_nothing()
    for given_ in ({}, {"count": 1, "fraction": 0.5}):
        with pytest.raises(ValidationError, match="either fraction or count"):
            Units(unit="row", **given_)
    with pytest.raises(DefenseKitError, match="does not say how large"):
        Units(unit="head", count=1).select(scores)
    with pytest.raises(DefenseKitError, match="3 columns, no multiple of the head size 2"):
        Units(unit="head", count=1).select(Scores({"a": scored}, head_size=2))


@given(scores=some_scores(), fraction=st.floats(0, 1))
@settings(deadline=None)
def test_a_fraction_per_row(scores: Scores, fraction: float) -> None:
    got = select(scores, FractionPerRow(fraction=fraction))
    for name, scored in scores.items():
        width = scored.score.shape[-1]
        for row, may, chosen in zip(
            *(t.reshape(-1, width).tolist() for t in (scored.score, scored.eligible, got[name])), strict=True
        ):
            order = sorted((i for i in range(width) if may[i]), key=lambda i: -row[i])
            best = set(order[: round(fraction * len(order))])
            assert {i for i in range(width) if chosen[i]} == best


@given(scores=st.lists(st.lists(st.integers(-5, 5), min_size=4, max_size=4), min_size=5, max_size=8))
@settings(deadline=None)
def test_rows_and_columns_are_outputs_and_inputs_however_they_are_stored(scores: list[list[int]]) -> None:
    score = torch.tensor(scores).float()
    eligible = score != 0
    there = {"h.0.dense.weight": Scored(score, eligible, "h.0")}
    turned = {"h.0.mlp.c_fc.weight": Scored(score.T, eligible.T, "h.0")}
    selectors: list[Selector] = [Units(unit=unit, fraction=0.5) for unit in ("row", "column", "head", "tensor")]  # type: ignore[arg-type]
    for selector in (*selectors, FractionPerRow(fraction=0.5)):
        [one], [other] = (selector.select(Scores(made, 2)).values() for made in (there, turned))
        assert torch.equal(one, other.T)  # type: ignore[arg-type, union-attr]
