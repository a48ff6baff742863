"""Per-sample squared gradients and gradients of batches, by parameter name."""

from defensekit.gradients.batched import squared_gradients, tokens_within
from defensekit.gradients.plain import Batch, Loss, cross_entropy, finite, mean_gradient

__all__ = ["Batch", "Loss", "cross_entropy", "finite", "mean_gradient", "squared_gradients", "tokens_within"]
