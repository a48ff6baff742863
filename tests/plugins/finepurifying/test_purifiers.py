"""Weight steps change what was selected, and nothing else, to the bit."""

import pytest
import torch

from defensekit.components.purifier import WeightStep
from defensekit.components.tensors import TensorView
from defensekit_baselines.merging import Rescale
from defensekit_baselines.purifiers import Interpolate, Prune
from defensekit_finepurifying.purifiers import Reset

STEPS: list[WeightStep] = [Reset(), Interpolate(keep=0.25), Prune(), Rescale()]


def view(dtype: torch.dtype) -> tuple[TensorView, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base, suspect = (torch.randn(5, 3, generator=generator).to(dtype) for _ in range(2))
    return TensorView("a", base.float(), suspect.float(), 0), suspect


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unselected_weights_are_equal_to_the_bit(step: WeightStep, dtype: torch.dtype) -> None:
    t, weight = view(dtype)
    nothing = torch.zeros(5, 3, dtype=torch.bool)
    assert torch.equal(step.apply(t, weight, nothing), weight)
    assert torch.equal(step.apply(t, weight, nothing.float()), weight)
    some = torch.rand(5, 3) > 0.5
    made = step.apply(t, weight, some)
    assert made.dtype == dtype
    assert made.shape == weight.shape
    assert torch.equal(made[~some], weight[~some])


def test_reset_interpolate_prune_do_what_they_say() -> None:
    t, weight = view(torch.float32)
    every = torch.ones(5, 3, dtype=torch.bool)
    assert torch.equal(Reset().apply(t, weight, every), t.base)
    assert torch.equal(Prune().apply(t, weight, every), torch.zeros(5, 3))
    quarter = t.base.double() + 0.25 * (t.suspect.double() - t.base.double())
    assert torch.allclose(Interpolate(keep=0.25).apply(t, weight, every).double(), quarter, atol=1e-6)
    assert torch.equal(Interpolate(keep=1.0).apply(t, weight, every), weight)
    half = torch.full((5, 3), 0.5)
    assert torch.allclose(Reset().apply(t, weight, half), (t.base + weight) / 2, atol=1e-6)
    assert torch.allclose(Prune().apply(t, weight, half), weight / 2, atol=1e-6)
