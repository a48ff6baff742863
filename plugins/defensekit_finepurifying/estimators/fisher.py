"""The empirical Fisher."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Estimate, EstimatorContext
from defensekit_finepurifying.estimators.base import PerSample

if TYPE_CHECKING:
    from torch import Tensor


class Fisher(PerSample):
    """The diagonal of the empirical Fisher: the mean over rows of squared per-sample gradients, labels as given.

        H_i = 1/N sum_n (d loss(x_n, y_n) / d w_i)^2

    in eval mode and float32 (Martens, "New insights and perspectives on the natural gradient method", 2020, section
    11, on what it is and what it is not). Where a model fits its rows well, the few that it fits badly dominate:
    ``effective_rows`` = (sum of squared norms)^2 / sum of fourth powers of the per-sample gradients' norms.

        estimator: {name: fisher, anchor: base}
    """

    any_loss: ClassVar[bool] = True

    def estimate(self, context: EstimatorContext) -> Estimate:
        from defensekit.gradients import cross_entropy, mean_squared_gradients, tokens_within

        model = context.model(self.anchor)
        tokens = tokens_within(model, self.budget_mib * 2**20)
        means, norms = mean_squared_gradients(
            model,
            lambda: (batch for _, batch in context.batches(model, tokens=tokens)),
            len(context.rows),
            held=self.held_mib * 2**20,
            loss=context.loss or cross_entropy,
            report=context.report,
        )
        return Estimate({"curvature": means}, {"effective_rows": effective_rows(norms)})


def effective_rows(norms: "Tensor") -> float:
    """The effective number of rows: how many of equal weight give as uneven a sum. ``norms`` are squared, (N,)."""
    return float(norms.sum() ** 2 / (norms**2).sum()) if norms.any() else 0.0
