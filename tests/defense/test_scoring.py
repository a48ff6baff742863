"""Scores and selections against the dumbest float64 code."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit.components import Scorer, Selector
from defensekit.components.tensors import Scored, Scores, TensorView
from defensekit.defense.histogram import histogram, score_histogram
from defensekit.defense.scoring import Views, score
from defensekit.defense.selection import select
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.pair import Pair
from defensekit.utils.errors import DefenseKitError
from defensekit_baselines.scorers import InverseFisher, InverseMagnitude, Magnitude, Random, Spectral
from defensekit_finepurifying.scorers import Diffusion
from defensekit_finepurifying.selectors import Fraction, Threshold
from tests.small_models import make_base

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def view(seed: int = 0, shape: tuple[int, ...] = (6, 4)) -> TensorView:
    generator = torch.Generator().manual_seed(seed)
    base, suspect = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    curvature = torch.rand(shape, generator=generator) ** 8
    curvature.view(-1)[::3] = 0
    positive = sorted(curvature[curvature > 0].tolist())
    return TensorView(
        "layer.0.weight",
        base,
        suspect,
        seed,
        {"curvature": curvature},
        lambda _, q: positive[int(q * (len(positive) - 1))],
    )


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_diffusion_is_drift_over_curvature(exponent: float) -> None:
    t = view()
    eps = t.quantile("curvature", 0.25)
    got = Diffusion(exponent=exponent, eps_quantile=0.25).score(t)
    for place, (b, s, h) in enumerate(
        zip(t.base.flatten(), t.suspect.flatten(), t["curvature"].flatten(), strict=True)
    ):
        expected = float(s - b) ** 2 / (float(h) ** exponent + eps**exponent)
        assert float(got.flatten()[place]) == pytest.approx(expected, rel=1e-5)


def test_diffusion_ranks_flat_dimensions_by_drift_and_stays_finite() -> None:
    t = TensorView(
        "a", torch.zeros(3), torch.tensor([1.0, 2.0, 1.0]), 0, {"curvature": torch.tensor([0.0, 0, 1])}, lambda *_: 0.0
    )
    got = Diffusion().score(t)
    assert torch.isfinite(got).all()
    assert got[0] > got[2]


def test_baseline_scorers_have_their_formulas() -> None:
    t = view()
    assert torch.equal(Magnitude().score(t), (t.suspect - t.base) ** 2)
    order = InverseMagnitude().score(t).flatten().argsort(descending=True)
    assert torch.equal(order, (1 / t.drift.flatten() ** 2).argsort(descending=True))
    eps = t.quantile("curvature", 0.01)
    assert torch.allclose(InverseFisher().score(t), 1 / (t["curvature"] + eps), rtol=1e-5)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 10), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_spectral_is_the_rank_k_part(rows: int, columns: int, rank: int, seed: int) -> None:
    t = view(seed, (rows, columns))
    u, s, v = torch.linalg.svd(t.drift.double(), full_matrices=False)
    s[rank:] = 0
    assert torch.allclose(Spectral(rank=rank).score(t).double(), (u @ torch.diag(s) @ v) ** 2, atol=1e-5)


def test_random_depends_on_seed_and_name_alone() -> None:
    t = view()
    other = TensorView("layer.1.weight", t.base, t.suspect, t.seed)
    reseeded = TensorView(t.name, t.base, t.suspect, 7)
    state = torch.random.get_rng_state()
    first = Random().score(t)
    assert torch.equal(first, Random().score(TensorView(t.name, t.suspect, t.base, t.seed)))
    assert not torch.equal(first, Random().score(other))
    assert not torch.equal(first, Random().score(reseeded))
    assert torch.equal(state, torch.random.get_rng_state())


@st.composite
def scores(draw: st.DrawFn) -> Scores:
    tensors = {}
    for i in range(draw(st.integers(1, 4))):
        rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        values = st.lists(
            st.sampled_from([-1.0, 0.0, 1.0, 2.0]) | floats, min_size=rows * columns, max_size=rows * columns
        )
        eligible = st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)
        layer = f"layer.{i % 2}" if i < 3 else "embeddings"
        tensors[f"{layer}.t{i}"] = Scored(
            torch.tensor(draw(values)).view(rows, columns),
            torch.tensor(draw(eligible)).view(rows, columns),
            layer,
        )
    return Scores(tensors)


def dumbest(group: list[tuple[str, Scored]], fraction: float) -> set[tuple[str, int]]:
    """Sort every eligible dimension by score, then name, then place, and take the first."""
    eligible = [
        (-float(s), name, place)
        for name, scored in group
        for place, (s, e) in enumerate(zip(scored.score.flatten(), scored.eligible.flatten(), strict=True))
        if e
    ]
    return {(name, place) for _, name, place in sorted(eligible)[: round(fraction * len(eligible))]}


@given(scores=scores(), fraction=st.floats(0, 1), scope=st.sampled_from(["global", "layer", "tensor", "embeddings"]))
@settings(deadline=None)
def test_fraction_takes_exactly_the_highest(scores: Scores, fraction: float, scope: str) -> None:
    got = select(scores, Fraction(fraction=fraction, scope=scope))  # type: ignore[arg-type]
    taken = {(name, int(place)) for name, chosen in got.items() for place in chosen.flatten().nonzero()}
    groups: dict[str, list[tuple[str, Scored]]] = {}
    for name, scored in scores.items():
        group = {"global": "", "layer": scored.layer, "tensor": name, "embeddings": str("embed" in name)}[scope]
        groups.setdefault(group, []).append((name, scored))
    assert taken == set().union(*(dumbest(group, fraction) for group in groups.values()))


@given(scores=scores(), fraction=st.floats(0, 1), bins=st.integers(1, 9))
@settings(deadline=None)
def test_a_histogram_counts_every_eligible_dimension_once(scores: Scores, fraction: float, bins: int) -> None:
    selection = select(scores, Fraction(fraction=fraction))
    found = histogram(
        sum(
            score_histogram(part, selection[name].bool().reshape(-1)) for name in scores for part in scores.parts(name)
        ),
        bins,
    )
    eligible = [float(s) for scored in scores.values() for s in scored.score[scored.eligible]]
    taken = sum(int(chosen.sum()) for chosen in selection.values())
    # The upper bits don't tell what is nearer to 0 than this from 0.
    assert found["log"] == all(value > -(2**-131) for value in eligible)
    tiny = sum(abs(value) < 2**-131 for value in eligible)
    assert found["zero"] == (tiny if found["log"] else 0)
    assert sum(found["counts"]) == len(eligible) - found["zero"]
    assert all(0 <= some <= every for some, every in zip(found["selected"], found["counts"], strict=True))
    assert 0 <= taken - sum(found["selected"]) <= found["zero"]
    on_axis = [math.log10(v) if found["log"] else v for v in eligible if v >= 2**-131 or not found["log"]]
    if on_axis:

        def near(value: float) -> Any:
            """One part in 32, or 2^-131 where that is more: numbers below 2^-126 have fewer bits."""
            if not found["log"]:
                return pytest.approx(value, abs=4e-40, rel=1 / 32)
            return pytest.approx(value, abs=math.log10(1 + max(1 / 32, 2**-131 / 10**value)) + 1e-4, rel=0)

        assert found["low"] == near(min(on_axis))
        assert found["high"] == near(max(on_axis))
        # The dumbest way: how many lie below the middle of the axis, where no value is at the border itself.
        middle = (found["low"] + found["high"]) / 2
        if bins % 2 == 0 and all(middle != near(value) for value in on_axis):
            assert sum(found["counts"][: bins // 2]) == sum(value < middle for value in on_axis)


def test_threshold_takes_what_is_above_and_eligible() -> None:
    scores = Scores({"a": Scored(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False]), "a")})
    assert select(scores, Threshold(above=1.0))["a"].tolist() == [False, True, False]


class Bad(Scorer):
    """Answers with something that is no score."""

    how: str

    def score(self, t: TensorView) -> torch.Tensor:
        return {"nan": t.drift * float("nan"), "shape": t.drift[..., :1], "nothing": None}[self.how]  # type: ignore[return-value]


@pytest.mark.parametrize(("how", "message"), [("nan", "NaN"), ("shape", "expected shape"), ("nothing", "None")])
def test_scores_are_held_to_their_contract(base: Path, suspect: Path, how: str, message: str) -> None:
    views = Views(Pair(Checkpoint(base), Checkpoint(suspect)), 0)
    with pytest.raises(DefenseKitError, match=f"the scorer Bad.*{message}"):
        score(views, Bad(how=how))


class Picky(Scorer):
    """Speaks of the embeddings alone."""

    how: str = "tensor"

    def eligible(self, t: TensorView) -> torch.Tensor:
        made = torch.full(t.drift.shape, t.name.startswith("embeddings"))
        return {"tensor": made, "shape": made[:1], "dtype": made.float()}[self.how]

    def score(self, t: TensorView) -> torch.Tensor:
        assert t.name.startswith("embeddings")  # of what is not eligible it is not asked
        return t.drift**2


def test_a_scorer_says_what_may_be_taken(base: Path, suspect: Path) -> None:
    views = Views(Pair(Checkpoint(base), Checkpoint(suspect)), 0)
    found = score(views, Picky())
    assert found.keys() == set(views.pair.scope)
    assert all(bool(scored.eligible.all()) == name.startswith("embeddings") for name, scored in found.items())
    assert not any(chosen.any() for name, chosen in select(found, Fraction(fraction=1.0)).items() if "encoder" in name)
    for how in ("shape", "dtype"):
        with pytest.raises(DefenseKitError, match=r"the scorer Picky .* must say of every dimension of embeddings"):
            score(views, Picky(how=how))


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "llama", "qwen3"])
def test_the_size_of_a_head_is_in_the_config(architecture: str, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", architecture)
    assert Pair(Checkpoint(folder), Checkpoint(folder)).head_size == 8


class Greedy(Selector):
    """Takes what it must not."""

    how: str

    def select(self, scores: Scores) -> dict[str, torch.Tensor]:
        everything = {name: torch.ones_like(scored.eligible) for name, scored in scores.items()}
        return {
            "inert": everything,
            "soft": {name: chosen.float() * 2 for name, chosen in everything.items()},
            "missing": {},
            "shape": {name: chosen[:1, :1] for name, chosen in everything.items()},
        }[self.how]


@pytest.mark.parametrize(
    ("how", "message"),
    [("inert", "not eligible"), ("soft", r"outside \[0, 1\]"), ("missing", "differ in"), ("shape", "gave shape")],
)
def test_selections_are_held_to_their_contract(how: str, message: str) -> None:
    scores = Scores({"a": Scored(torch.rand(3, 3), torch.eye(3).bool(), "a")})
    with pytest.raises(DefenseKitError, match=message):
        select(scores, Greedy(how=how))


def test_quantile_is_over_the_positive_values_of_the_whole_model(base: Path, suspect: Path) -> None:
    pair = Pair(Checkpoint(base), Checkpoint(suspect))
    values = {name: (torch.rand(pair.block(name)[0].shape) - 0.5).clamp(min=0) for name in pair.scope}
    views = Views(pair, 0, {"curvature": values.__getitem__})
    positive = sorted(float(v) for tensor in values.values() for v in tensor.flatten() if v > 0)
    for q in (0.0, 0.01, 0.5, 1.0):
        assert views[pair.scope[0]].quantile("curvature", q) == positive[int(q * (len(positive) - 1))]
