"""How suspicious each dimension is: how far it moved, for what is usual in its tensor."""

from typing import TYPE_CHECKING

from defensekit.api import Field, Scorer, TensorView

if TYPE_CHECKING:
    from torch import Tensor


class Relative(Scorer):
    """How far a weight moved, for its size: |delta| / (|base| + eps * rms(base)).

    eps is a share of the tensor's root mean square, so that the score of a tensor does not depend on its scale.
    """

    eps: float = Field(0.1, gt=0, description="what is added to a weight's size, as a share of the tensor's rms")

    def score(self, t: TensorView) -> "Tensor":
        import torch

        floor = self.eps * t.base.square().mean().sqrt() + torch.finfo(torch.float32).tiny
        return t.drift.abs() / (t.base.abs() + floor)
