"""Rows of the embedding: outliers among rows as frequent."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit.scanner.rows import FEWEST, RowDrift, outliers


@pytest.mark.parametrize("decay", [0.0, 1e-4, 1e-2])
def test_weight_decay_is_no_drift(decay: float) -> None:
    torch.manual_seed(0)
    base = torch.randn(200, 16)
    suspect = base * (1 - decay)
    suspect[:20] += 0.01 * torch.randn(20, 16)
    rows = RowDrift("e", "F32", 200)
    for start in (0, 150):
        rows.look("e", start, base[start : start + 150], suspect[start : start + 150])
        rows.look("another", start, base, base + 1)
    assert (rows.drift > 0).tolist() == [True] * 20 + [False] * 180
    assert rows.drift[:20] == pytest.approx((suspect[:20] - (1 - decay) * base[:20]).norm(dim=1).numpy(), rel=0.02)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 10**7), st.booleans()), min_size=1, max_size=200),
    st.randoms(use_true_random=False),
)
def test_outliers_of_any_rows(rows: list[tuple[float, int, bool]], random: Any) -> None:
    def judge(some: list[tuple[float, int, bool]]) -> Any:
        drift, often, judged = (np.array(column) for column in zip(*some, strict=True))
        return outliers(drift.astype(float), often.astype(float), judged.astype(bool))

    result = judge(rows)
    judged = np.array([drift > 0 and wanted for drift, _, wanted in rows])
    assert (np.isfinite(result.z) == judged).all()
    assert ((result.group >= 0) == judged).all()
    sizes = np.bincount(result.group[judged], minlength=1)
    assert all(size == 0 or size >= FEWEST for size in sizes[1:])
    assert sum(sizes) < FEWEST or all(size == 0 or size >= FEWEST for size in sizes)
    order = list(range(len(rows)))
    random.shuffle(order)
    assert judge([rows[i] for i in order]).z == pytest.approx(result.z[order], nan_ok=True)


def test_a_lone_rare_row_is_held_against_the_next_more_frequent() -> None:
    """A trigger in a small vocabulary: the only row that the clean rows don't have, and the furthest by far."""
    rng = np.random.default_rng(0)
    often = np.array([0.0] + [40.0] * 60)
    drift = np.array([5.0, *np.exp(0.2 * rng.standard_normal(60))])
    result = outliers(drift, often, np.ones(61, dtype=bool))
    assert int(np.argmax(result.z)) == 0
    assert result.z[0] > 5


def test_a_row_is_held_against_rows_as_frequent() -> None:
    rng = np.random.default_rng(0)
    often = np.repeat([0.0, 100.0], 500)
    drift = np.where(often > 0, 1.0, 0.1) * np.exp(0.2 * rng.standard_normal(1000))
    drift[7], drift[507] = 1.0, 1.0  # as far as a frequent one, once among rare and once among frequent ones
    z = outliers(drift, often, np.ones(1000, dtype=bool)).z
    assert int(np.argmax(z)) == 7
    assert z[7] == pytest.approx(np.log(10) / 0.2, rel=0.15)
    assert abs(z[507]) < 1
