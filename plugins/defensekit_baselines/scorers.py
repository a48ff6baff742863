"""Scorers for comparison: by drift alone, by curvature alone, by rank, at random."""

import hashlib
from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Field, Scorer, TensorView

if TYPE_CHECKING:
    from torch import Tensor


class Magnitude(Scorer):
    """delta^2: the dimensions that moved furthest."""

    elementwise: ClassVar[bool] = True

    def score(self, t: TensorView) -> "Tensor":
        return t.drift**2


class InverseMagnitude(Scorer):
    """-|delta|: the dimensions that moved least come first, in the order of 1 / delta^2.

    Fine-mixing (Sel) keeps the largest drifts (Zhang et al., Findings of EMNLP 2022).
    """

    elementwise: ClassVar[bool] = True

    def score(self, t: TensorView) -> "Tensor":
        return -t.drift.abs()


class InverseFisher(Scorer):
    """1 / (H + eps): the dimensions where the clean loss is flattest; eps as in ``diffusion``."""

    elementwise: ClassVar[bool] = True

    needs: ClassVar[frozenset[str]] = frozenset({"curvature"})

    eps_quantile: float = Field(0.01, ge=0, le=1, description="which quantile of the positive H is eps")

    def score(self, t: TensorView) -> "Tensor":
        import torch

        eps = max(t.quantile("curvature", self.eps_quantile), torch.finfo(torch.float32).tiny)
        return (1 / (t["curvature"].double() + eps)).clamp(max=torch.finfo(torch.float32).max).float()


class Spectral(Scorer):
    """The squared entries of the drift matrix's best rank-k approximation: what moved together.

    Vectors have no rank and are scored by delta^2.
    """

    rank: int = Field(8, ge=1, description="k, how many singular directions of the drift are kept")

    def score(self, t: TensorView) -> "Tensor":
        import torch

        if t.drift.dim() != 2:
            return t.drift**2
        # The Gram matrix of the shorter side: an embedding table of 30,000 rows costs one 384 x 384 eigenproblem.
        drift = t.drift.double()
        tall = drift if drift.shape[0] >= drift.shape[1] else drift.T
        _, vectors = torch.linalg.eigh(tall.T @ tall)
        leading = vectors[:, -self.rank :]
        low_rank = tall @ leading @ leading.T
        score: Tensor = (low_rank if tall is drift else low_rank.T).square().float()
        return score


class Random(Scorer):
    """Random scores, drawn from the seed and the tensor's name (Fine-mixing, Zhang et al., Findings of EMNLP 2022)."""

    def score(self, t: TensorView) -> "Tensor":
        import torch

        digest = hashlib.sha256(f"{t.seed}:{t.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.rand(t.drift.shape, generator=generator)
