"""The indicator of Fine-purifying."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Field, Scorer, TensorView

if TYPE_CHECKING:
    from torch import Tensor


class Diffusion(Scorer):
    """Drift over curvature, r = delta^2 / (H^p + eps^p) (Zhang et al. 2023, with p = 1).

    For plain SGD the noise of clean training makes delta^2 proportional to H, so r is even over clean dimensions;
    for AdamW it is not, which is what ``exponent`` is for. eps is a low quantile of the positive H of the whole model:
    a dimension that moved where the clean loss is flat ranks as abnormal, by how far it moved.
    """

    elementwise: ClassVar[bool] = True

    needs: ClassVar[frozenset[str]] = frozenset({"curvature"})

    exponent: float = Field(1.0, ge=0, le=4, description="p: 1 for the theory of SGD, 0 leaves the drift alone")
    eps_quantile: float = Field(0.01, ge=0, le=1, description="which quantile of the positive H is eps")

    def score(self, t: TensorView) -> "Tensor":
        import torch

        # A power of H leaves float32: it reaches 1e-20 where clean rows hardly touch a weight. A drift under 1e-22,
        # which no weight of usual size can have, counts as none.
        eps = max(t.quantile("curvature", self.eps_quantile), torch.finfo(torch.float32).tiny)
        if self.exponent == 1:
            ratio = t.drift.square().div_(t["curvature"] + eps)
        else:
            below = t["curvature"].double().pow_(self.exponent).add_(eps**self.exponent)
            ratio = t.drift.double().square_().div_(below)
        return ratio.clamp_(max=torch.finfo(torch.float32).max).float()
