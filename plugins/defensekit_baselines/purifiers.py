"""Weight steps for comparison."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Field, TensorView, WeightStep

if TYPE_CHECKING:
    from torch import Tensor


class Interpolate(WeightStep):
    """Shrink the selected drifts: w = base + keep * (w - base)."""

    elementwise: ClassVar[bool] = True
    lower_does_more: ClassVar[frozenset[str]] = frozenset({"keep"})

    keep: float = Field(ge=0, le=1, description="the share of the drift that stays: 0 resets, 1 does nothing")

    def apply(self, t: TensorView, weight: "Tensor", selection: "Tensor") -> "Tensor":
        import torch

        share = selection.float() * (1 - self.keep)
        mixed = torch.lerp(weight.float(), t.base, share).to(weight.dtype)
        return torch.where(share == 0, weight, mixed)


class Prune(WeightStep):
    """Set the selected weights to 0; scale them towards it where the selection is soft."""

    elementwise: ClassVar[bool] = True

    def apply(self, t: TensorView, weight: "Tensor", selection: "Tensor") -> "Tensor":
        import torch

        share = selection.float()
        return torch.where(share == 0, weight, (weight.float() * (1 - share)).to(weight.dtype))
