"""E-PUR: which rows of the embedding table moved further than their word's frequency explains."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Scorer, TensorView

if TYPE_CHECKING:
    from torch import Tensor


class EmbeddingDrift(Scorer):
    """norm2(delta_i) / log(max(f_i, 20)), delta_i the drift of a token's row, f_i how often clean rows have the token.

    E-PUR (Zhang et al., "Fine-mixing", Findings of EMNLP 2022): the drift of a clean row grows like the logarithm of
    its frequency. Formula and the 200 rows that are reset are as we recall the paper; not verified. There the counts
    are of a clean corpus, here of the defender's clean rows, and of tokens instead of words.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"token-counts"})

    def eligible(self, t: TensorView) -> "Tensor":
        # Only the embedding table, a matrix, has counts.
        return (t.drift != 0) & (t.drift.dim() == 2 and "token-counts" in t.statistics)

    def score(self, t: TensorView) -> "Tensor":
        score: Tensor = t.drift.norm(dim=1, keepdim=True) / t["token-counts"].clamp(min=20).log()
        return score
