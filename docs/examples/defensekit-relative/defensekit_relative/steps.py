"""What is done to the selected weights: a drift may stay, but not a large one."""

from typing import TYPE_CHECKING

from defensekit.api import Field, TensorView, WeightStep

if TYPE_CHECKING:
    from torch import Tensor


class Clip(WeightStep):
    """Cut the selected drifts off at a multiple of the tensor's usual one: |delta| <= bound * rms(delta)."""

    bound: float = Field(1.0, ge=0, description="the largest drift that stays, in root mean squares; 0 resets")

    def apply(self, t: TensorView, weight: "Tensor", selection: "Tensor") -> "Tensor":
        import torch

        share = selection.float()
        largest = self.bound * t.drift.square().mean().sqrt()
        drift = weight.float() - t.base
        clipped = t.base + drift.clamp(-largest, largest)
        mixed = torch.lerp(weight.float(), clipped, share).to(weight.dtype)
        return torch.where(share == 0, weight, mixed)
