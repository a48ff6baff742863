"""What makes them what they are."""

import torch
from defensekit.api import TensorView

from defensekit_relative.relative import Relative
from defensekit_relative.steps import Clip


def view(scale: float = 1.0) -> TensorView:
    base = torch.tensor([[1.0, 0.01, 2.0]])
    return TensorView("encoder.weight", scale * base, scale * (base + torch.tensor([[0.1, 0.1, 0.0]])), 0)


def test_a_small_weight_that_moved_as_far_is_more_suspicious() -> None:
    large, small, still = Relative().score(view())[0].tolist()
    assert small > 5 * large > still == 0


def test_the_scale_of_a_tensor_does_not_matter() -> None:
    torch.testing.assert_close(Relative().score(view(1000.0)), Relative().score(view()))


def test_no_selected_drift_is_larger_than_the_bound() -> None:
    t, every = view(), torch.ones(1, 3, dtype=torch.bool)
    rms = float(t.drift.square().mean().sqrt())
    clipped = Clip(bound=0.5).apply(t, t.suspect, every)
    torch.testing.assert_close((clipped - t.base)[0], torch.tensor([0.5 * rms, 0.5 * rms, 0.0]))
    assert torch.equal(Clip(bound=0).apply(t, t.suspect, every), t.base)
