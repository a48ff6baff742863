"""The Hessian's own diagonal."""

from typing import ClassVar

from defensekit.api import Estimate, EstimatorContext, Field
from defensekit_finepurifying.estimators.base import Curvature


class Hutchinson(Curvature):
    """The diagonal of the Hessian H of the mean clean loss, from products with random signs.

        E[z * (H z)] = diag(H),   z_i = +1 or -1 with equal chance

    (Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007). Every batch has signs of its own;
    ``curvature-error`` is the standard error of the estimate, from the spread over its ``samples`` products. Negative
    entries can't be used as a curvature to divide by: they count as 0, and ``negative`` says how large their
    share is. A product takes about four times a gradient.

        estimator: {name: hutchinson, samples: 16}
    """

    provides: ClassVar[frozenset[str]] = frozenset({"curvature", "curvature-error"})
    any_loss: ClassVar[bool] = True

    samples: int = Field(8, ge=2, description="random sign vectors per batch")
    batch_size: int = Field(32, ge=1, description="rows per batch")

    def estimate(self, context: EstimatorContext) -> Estimate:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        from defensekit.gradients import cross_entropy, finite

        model, rows = context.model(self.anchor).eval(), len(context.rows)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        diagonal = {name: torch.zeros_like(p) for name, p in parameters.items()}
        variance = {name: torch.zeros_like(p) for name, p in parameters.items()}
        generator = torch.Generator(model.device).manual_seed(context.seed)
        done = 0
        for indices, batch in context.batches(model, size=self.batch_size):
            first = {name: torch.zeros_like(p) for name, p in parameters.items()}
            second = {name: torch.zeros_like(p) for name, p in parameters.items()}
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                loss = finite((context.loss or cross_entropy)(model, batch)).sum() / rows
                gradients = torch.autograd.grad(
                    loss, list(parameters.values()), create_graph=True, materialize_grads=True
                )
                for _ in range(self.samples):
                    signs = [
                        torch.randint(0, 2, g.shape, generator=generator, device=model.device).to(g) * 2 - 1
                        for g in gradients
                    ]
                    curved = [(g, sign) for g, sign in zip(gradients, signs, strict=True) if g.requires_grad]
                    products = torch.autograd.grad(
                        [g for g, _ in curved],
                        list(parameters.values()),
                        [sign for _, sign in curved],
                        retain_graph=True,
                        materialize_grads=True,
                    )
                    for name, sign, product in zip(parameters, signs, products, strict=True):
                        sample = sign * product
                        first[name] += sample
                        second[name] += sample**2
            for name in parameters:
                mean = first[name] / self.samples
                diagonal[name] += mean
                variance[name] += (second[name] / self.samples - mean**2).clamp(min=0) / (self.samples - 1)
            done += len(indices)
            context.report(done, rows)
        negative = sum(int((values < 0).sum()) for values in diagonal.values())
        return Estimate(
            {
                "curvature": {name: values.detach().clamp(min=0) for name, values in diagonal.items()},
                "curvature-error": {name: values.detach().sqrt() for name, values in variance.items()},
            },
            {"negative": negative / sum(values.numel() for values in diagonal.values())},
        )
