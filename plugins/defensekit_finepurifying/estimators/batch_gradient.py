"""Squared batch gradients, which some published code calls the Fisher."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Estimate, EstimatorContext, Field
from defensekit_finepurifying.estimators.base import Curvature

if TYPE_CHECKING:
    from torch import Tensor

    from defensekit.gradients import Batch


class BatchGradient(Curvature):
    """The mean over batches of the *batch's* squared mean gradient: cheap, and not the Fisher.

        H_i = sum_b N_b / N (1/N_b sum_{n in b} d loss_n / d w_i)^2

    Squaring after averaging leaves about 1/B of the Fisher plus the squared mean gradient. It is included for
    comparison.

        estimator: {name: batch-gradient, batch_size: 16}
    """

    any_loss: ClassVar[bool] = True

    batch_size: int = Field(32, ge=1, description="rows per batch")

    def estimate(self, context: EstimatorContext) -> Estimate:
        import torch

        from defensekit.gradients import cross_entropy, mean_gradient

        model, rows = context.model(self.anchor), len(context.rows)
        sizes: list[int] = []

        def batches() -> "Iterator[Batch]":
            for indices, batch in context.batches(model, size=self.batch_size):
                sizes.append(len(indices))
                yield batch

        sums: dict[str, Tensor] = {}
        for gradients in mean_gradient(model, batches(), loss=context.loss or cross_entropy):
            for name, gradient in gradients.items():
                sums.setdefault(name, torch.zeros_like(gradient)).addcmul_(gradient, gradient, value=sizes[-1])
            context.report(sum(sizes), rows)
        return Estimate({"curvature": {name: total / rows for name, total in sums.items()}})
