"""The exact cut against sorting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit.utils import order_statistics
from defensekit.utils.order_statistics import cutoff, kth_largest

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(values=st.lists(floats | st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=40), data=st.data())
@settings(deadline=None)
def test_cutoff_is_the_kth_largest(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    tensor = torch.tensor(values)
    threshold, ties = cutoff(lambda: tensor.split(3), count)
    assert threshold == sorted(values, reverse=True)[count - 1]
    assert int((tensor > threshold).sum()) + ties == count
    assert 1 <= ties <= int((tensor == threshold).sum())


@given(
    values=st.lists(st.lists(floats | st.sampled_from([0.0, -0.0, 1.0]), max_size=30), min_size=1, max_size=4),
    data=st.data(),
)
@settings(deadline=None)
def test_a_sample_changes_nothing_whatever_it_says(values: list[list[float]], data: st.DataObject) -> None:
    """It may hold the values or mislead; room may be scarce."""
    tensors = [torch.tensor(some) for some in values]
    counts = [torch.tensor([data.draw(st.booleans()) for _ in some], dtype=torch.bool) for some in values]
    sources = [lambda t=t, c=c: zip(t.split(3), c.split(3), strict=True) for t, c in zip(tensors, counts, strict=True)]
    share = data.draw(st.floats(0, 1))
    sample = torch.tensor(data.draw(st.lists(floats | st.sampled_from([v for some in values for v in some] or [0.0]))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_statistics, "KEPT", data.draw(st.integers(1, 40)))
        found = kth_largest(sources, lambda total: round(share * total), 1, sample)
    plain = kth_largest(sources, lambda total: round(share * total))
    assert (found.value, found.ties) == (plain.value, plain.ties)
    if found.equal is not None and found.ties:
        wanted = [int((t[c] == found.value).sum()) for t, c in zip(tensors, counts, strict=True)]
        assert found.equal == wanted


def test_a_sample_that_saw_one_value_alone_misleads_no_cut() -> None:
    """What a stranger could arrange, who knows which places are looked at."""
    values = torch.rand(3000, generator=torch.Generator().manual_seed(0)) / 2
    values[::3] = 1.0
    for count in (500, 1000, 1001, 1500, 3000):
        found = kth_largest([lambda: [(values, None)]], lambda total, k=count: k * total // 3000, 1, values[::3])  # type: ignore[misc]
        assert found.value == float(values.sort(descending=True).values[count - 1])
        assert int((values > found.value).sum()) + found.ties == count
