"""The mixture of two Gamma laws: against the dumbest fit in float64, on data whose share is known, on any histogram."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import gamma

from defensekit.api import Scores, UsageError
from defensekit.components import Selector
from defensekit.components.tensors import Scored
from defensekit.defense.gamma_mixture import BINS, OCTAVES, PER_OCTAVE, count_bins, fit_mixture, interval
from defensekit.defense.selection import select
from defensekit.recipe.resolve import component


def drawn(share: float, times: float, size: int, scale: float = 1e-9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values of a mixture whose normal mean is ``scale``, and which of them are abnormal."""
    rng = np.random.default_rng(seed)
    abnormal = rng.random(size) < share
    return rng.gamma(0.5, 2 * scale * np.where(abnormal, times, 1.0)), abnormal


def counted(r: np.ndarray) -> np.ndarray:
    return count_bins(torch.tensor(r).log2())


@pytest.mark.parametrize(("share", "times"), [(0.1, 50.0), (0.02, 1000.0), (0.4, 20.0), (0.3, 5.0)])
def test_the_fit_is_the_maximum_of_the_likelihood(share: float, times: float) -> None:
    scale = 1e-9
    r, _ = drawn(share, times, 60_000)

    def loss(parameters: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-parameters[0]))
        normal, abnormal = (gamma.logpdf(r / scale, 0.5, scale=2 * np.exp(k)) for k in parameters[1:])
        return -float(np.logaddexp(np.log1p(-p) + normal, np.log(p) + abnormal).mean())

    best = minimize(loss, [0.0, 0.0, 3.0], method="L-BFGS-B")
    fitted = fit_mixture(counted(r))
    assert fitted.share == pytest.approx(1 / (1 + np.exp(-best.x[0])), rel=0.01)
    assert [fitted.normal / scale, fitted.abnormal / scale] == pytest.approx(np.exp(best.x[1:]), rel=0.01)
    assert fitted.share == pytest.approx(share, rel=0.05)
    assert fitted.apart
    assert fitted.distance < 0.01 < fitted.single_distance


def test_one_law_is_not_two() -> None:
    r, _ = drawn(0.0, 1.0, 100_000)
    fitted = fit_mixture(counted(r))
    assert not fitted.apart
    assert fitted.single == pytest.approx(1e-9, rel=0.02)
    assert fitted.single_distance < 0.01
    assert fitted.above(0.5) == fitted.above_false_discovery(counted(r), 0.1) == np.inf


def test_what_follows_no_gamma_law_is_said_to_be_far_off() -> None:
    r = np.exp(np.random.default_rng(0).normal(0, 6, 50_000))  # as 1 / H of a model trained by AdamW
    assert fit_mixture(counted(r)).distance > 0.1


def test_the_interval_is_over_tensors() -> None:
    """Tensors that hold all or nothing of the abnormal values leave the share uncertain, however many values there
    are."""
    even, _ = drawn(0.2, 100.0, 40_000)
    mixed = np.stack([counted(part) for part in np.split(even, 20)])
    uneven = np.stack([counted(drawn(float(i < 4), 100.0, 2000, seed=i)[0]) for i in range(20)])
    widths = []
    for histograms in (mixed, uneven):
        fitted = fit_mixture(histograms.sum(axis=0))
        low, high = interval(histograms, fitted, np.random.default_rng(0))
        assert low < 0.2 < high
        assert (low, high) == interval(histograms, fitted, np.random.default_rng(0))
        widths.append(high - low)
    assert widths[1] > 5 * widths[0]


def test_values_land_in_their_bins() -> None:
    exponents = torch.tensor([0.0, 0.99 / PER_OCTAVE, 1.0, -1000.0, 1000.0])
    counts = count_bins(exponents)
    assert counts[OCTAVES * PER_OCTAVE] == 2
    assert counts[(OCTAVES + 1) * PER_OCTAVE] == counts[0] == counts[-1] == 1
    assert counts.sum() == 5


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.integers(0, BINS - 1), st.integers(1, 10**9), min_size=1, max_size=40))
@example({4551: 1})  # nothing belongs to one of the laws
def test_any_histogram_has_a_fit(bins: dict[int, int]) -> None:
    counts = np.zeros(BINS, dtype=int)
    counts[list(bins)] = list(bins.values())
    fitted = fit_mixture(counts)
    assert 0 < fitted.share < 1
    assert 0 < fitted.normal <= fitted.abnormal < np.inf
    assert 0 <= fitted.distance <= 1
    assert 0 <= fitted.single_distance <= 1
    posterior = fitted.posterior(2.0 ** np.arange(-200.0, 200.0))
    assert (np.diff(posterior) >= 0).all()
    at = fitted.above(0.7)
    if 0 < at < np.inf:
        assert fitted.posterior(np.array([at])) == pytest.approx([0.7])
    assert fitted.above_false_discovery(counts, 0.5) <= fitted.above_false_discovery(counts, 0.01)


def test_nothing_has_no_fit() -> None:
    with pytest.raises(ValueError, match="no value"):
        fit_mixture(np.zeros(BINS, dtype=int))


# -- the selector ------------------------------------------------------------------------------------------------------


def scores(r: np.ndarray, still: int = 0) -> Scores:
    """Scores in two tensors; the first ``still`` dimensions never moved."""
    values = torch.tensor(r, dtype=torch.float32)
    eligible = torch.ones(len(r), dtype=torch.bool)
    eligible[:still] = False
    half = len(r) // 2
    return Scores({"a": Scored(values[:half], eligible[:half], "0"), "b": Scored(values[half:], eligible[half:], "1")})


def selected(found: Scores, **parameters: float) -> np.ndarray:
    selector = component(Selector, {"name": "gamma-mixture", **parameters})
    return torch.cat([*select(found, selector).values()]).numpy()


def test_the_selector_takes_what_is_more_likely_abnormal() -> None:
    r, _ = drawn(0.2, 100.0, 40_000)
    fitted = fit_mixture(counted(r.astype(np.float32)))
    for posterior in (0.5, 0.9):
        chosen = selected(scores(r), posterior=posterior)
        assert (chosen == (fitted.posterior(r.astype(np.float32)) > posterior)).mean() > 0.9999
    assert (selected(scores(r)) == selected(scores(r), posterior=0.5)).all()


def test_the_selector_keeps_the_rate_of_false_discoveries() -> None:
    r, abnormal = drawn(0.2, 100.0, 40_000)
    for rate in (0.05, 0.2):
        chosen = selected(scores(r), false_discovery_rate=rate)
        assert (~abnormal[chosen]).mean() == pytest.approx(rate, abs=0.02)


def test_the_selector_takes_nothing_of_one_law_and_nothing_that_never_moved() -> None:
    r, _ = drawn(0.2, 100.0, 20_000)
    assert not selected(scores(r, still=len(r))).any()
    assert not selected(scores(r, still=5000))[:5000].any()
    assert not selected(scores(drawn(0.0, 1.0, 20_000)[0])).any()


def test_a_rate_of_zero_is_no_selection() -> None:
    """A rule that chooses the rate always tries 0."""
    assert component(Selector, {"name": "gamma-mixture", "false_discovery_rate": 0}).takes_nothing()
    assert not component(Selector, {"name": "gamma-mixture"}).takes_nothing()
    assert not selected(scores(drawn(0.2, 100.0, 20_000)[0]), false_discovery_rate=0).any()


def test_the_selector_takes_one_parameter() -> None:
    with pytest.raises(UsageError, match="either `posterior` or `false_discovery_rate`"):
        component(Selector, {"name": "gamma-mixture", "posterior": 0.5, "false_discovery_rate": 0.1})
