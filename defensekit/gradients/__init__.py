"""Squared per-sample gradients, and gradients of batches, by parameter name."""

from defensekit.gradients.batched import squared_gradients, tokens_within
from defensekit.gradients.grouped import mean_squared_gradients
from defensekit.gradients.plain import Batch, Loss, cross_entropy, finite, mean_gradient

__all__ = [
    "Batch",
    "Loss",
    "cross_entropy",
    "finite",
    "mean_gradient",
    "mean_squared_gradients",
    "squared_gradients",
    "tokens_within",
]
