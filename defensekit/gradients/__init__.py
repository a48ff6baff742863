"""Per-sample squared gradients and gradients of batches, by parameter name."""

from defensekit.gradients.plain import Batch, mean_gradient, squared_gradients

__all__ = ["Batch", "mean_gradient", "squared_gradients"]
