"""Curvature of the clean loss, by the diagonal of the empirical Fisher."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from defensekit.api import Estimate, Estimator, EstimatorContext, Field


class _Gradients(Estimator):
    """What the estimators here share: where the gradients are taken."""

    provides: ClassVar[frozenset[str]] = frozenset({"curvature"})

    anchor: Literal["suspect", "base"] = Field(
        "suspect", description="whose weights the gradients are taken at (base: with the suspect's head)"
    )


class Fisher(_Gradients):
    """The diagonal of the empirical Fisher: the mean over rows of squared per-sample gradients, labels as given.

        H_i = 1/N sum_n (d loss(x_n, y_n) / d w_i)^2

    in eval mode and float32 (Martens, "New insights and perspectives on the natural gradient method", 2020, section
    11, on what it is and what it is not). Where a model fits its rows well, this rests on the few it fits badly:
    ``effective_rows`` = (sum of squared norms)^2 / sum of fourth powers of the per-sample gradients' norms.
    """

    budget_mib: int = Field(16, ge=1, description="MiB held besides activations and the result; sets the batch size")

    def estimate(self, context: EstimatorContext) -> Estimate:
        from defensekit.gradients import squared_gradients, tokens_within
        from defensekit.text import batches, encode

        model = context.model(self.anchor)
        encoded = encode(context.tokenizer, context.rows, context.max_length)
        size = tokens_within(model, self.budget_mib * 2**20)
        inputs = (
            {name: values.to(model.device) for name, values in batch.items()}
            for _, batch in batches(encoded, context.tokenizer, len(encoded), size)
        )
        sums, norms = squared_gradients(model, inputs, report=lambda done: context.report(done, len(encoded)))
        for total in sums.values():
            total /= len(encoded)
        effective = float(norms.sum() ** 2 / (norms**2).sum()) if norms.any() else 0.0
        return Estimate({"curvature": sums}, {"effective_rows": effective})


class BatchGradient(_Gradients):
    """The mean over batches of the *batch's* squared mean gradient: cheap, and not the Fisher.

    Squaring after averaging leaves about 1/B of the Fisher plus the squared mean gradient; published code has called
    this the Fisher. It is here to be compared with.
    """

    batch_size: int = Field(32, ge=1, description="rows per batch")

    def estimate(self, context: EstimatorContext) -> Estimate:
        import torch

        from defensekit.gradients import mean_gradient
        from defensekit.text import batches, encode

        model = context.model(self.anchor)
        encoded = encode(context.tokenizer, context.rows, context.max_length)
        sizes: list[int] = []

        def inputs() -> Iterator[dict[str, torch.Tensor]]:
            for places, batch in batches(encoded, context.tokenizer, self.batch_size):
                sizes.append(len(places))
                yield {name: values.to(model.device) for name, values in batch.items()}

        sums: dict[str, torch.Tensor] = {}
        for gradients in mean_gradient(model, inputs()):
            for name, gradient in gradients.items():
                sums.setdefault(name, torch.zeros_like(gradient)).addcmul_(gradient, gradient, value=sizes[-1])
            context.report(sum(sizes), len(encoded))
        return Estimate({"curvature": {name: total / len(encoded) for name, total in sums.items()}})
