"""The Fisher itself, by labels drawn from the model."""

from typing import TYPE_CHECKING

from defensekit.api import Estimate, EstimatorContext, Field
from defensekit_finepurifying.estimators.base import PerSample
from defensekit_finepurifying.estimators.fisher import effective_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from defensekit.gradients import Batch


class FisherMC(PerSample):
    """The diagonal of the Fisher: squared per-sample gradients for labels drawn from the model's own answers.

        H_i = 1/(N S) sum_n sum_s (d loss(x_n, y_ns) / d w_i)^2,   y_ns ~ p(y | x_n)

    Unbiased for the Fisher, which is the Gauss-Newton matrix of the cross-entropy (Martens 2020, sections 5 and 9;
    Kunstner, Hennig and Balles, "Limitations of the empirical Fisher approximation", 2019). The draw of a row
    depends only on the seed and its index among the rows. ``effective_draws`` is to draws what ``effective_rows`` of
    `fisher` is to rows.

        estimator: {name: fisher-mc, samples: 4}
    """

    samples: int = Field(1, ge=1, description="labels drawn per row")

    def estimate(self, context: EstimatorContext) -> Estimate:
        import torch

        from defensekit.gradients import mean_squared_gradients, tokens_within

        model, rows = context.model(self.anchor), len(context.rows)
        tokens = tokens_within(model, self.budget_mib * 2**20)
        uniform = torch.rand(self.samples, rows, generator=torch.Generator().manual_seed(context.seed))
        means, norms = mean_squared_gradients(
            model,
            lambda: (
                {**batch, "uniform": draw[indices].to(model.device)}
                for draw in uniform
                for indices, batch in context.batches(model, tokens=tokens)
            ),
            rows * self.samples,
            held=self.held_mib * 2**20,
            loss=drawn_cross_entropy,
            report=context.report,
        )
        return Estimate({"curvature": means}, {"effective_draws": effective_rows(norms)})


def drawn_cross_entropy(model: "torch.nn.Module", batch: "Batch") -> "Tensor":
    """The cross-entropy of labels drawn from the model's predictions.

    A label is the first whose cumulative probability exceeds the sample's ``uniform`` number.
    """
    import torch

    inputs = {name: values for name, values in batch.items() if name not in ("labels", "uniform")}
    logits = model(**inputs).logits.float()
    cumulative = logits.detach().softmax(-1).cumsum(-1)
    labels = (cumulative <= batch["uniform"][:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
