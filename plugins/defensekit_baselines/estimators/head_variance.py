"""How much the attention of a head varies."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import DefenseKitError, Estimate, Estimator, EstimatorContext, Field
from defensekit_baselines.estimators.layers import linear_layers
from defensekit_baselines.layout import HEADS_OUT

if TYPE_CHECKING:
    from torch import Tensor


class HeadVariance(Estimator):
    """The variance of each head's attention from the first token over the tokens of a row, its mean over clean rows, at
    the suspect; for every entry of the head's columns of the matrix that puts the heads together.

    PURE (Zhao et al., ICML 2024) prunes the heads with the smallest. The authors' code (xingyizhao/PURE) counts padding
    as tokens with an attention of 0; here padding does not count, so that the result does not depend on it. A matrix
    that all layers share, as in ALBERT, has the mean over the layers.

        estimator: {name: head-variance}
    """

    provides: ClassVar[frozenset[str]] = frozenset({"head-variance"})

    batch_size: int = Field(64, ge=1, description="rows per batch; the result does not depend on it")

    def estimate(self, context: EstimatorContext) -> Estimate:
        import torch

        model = context.model("suspect").eval()
        model.set_attn_implementation("eager")  # the fused kernels give no attention
        layers = [(name, layer) for name, layer in linear_layers(model) if HEADS_OUT.search(f"{name}.weight")]
        sums: list[Tensor] = []
        done = 0
        with torch.inference_mode():
            for places, batch in context.batches(model, size=self.batch_size):
                out = model(**{k: v for k, v in batch.items() if k != "labels"}, output_attentions=True)
                real = batch["attention_mask"].bool()
                first = torch.stack(
                    [layer[:, :, 0].double() for layer in out.attentions]
                )  # layers, rows, heads, tokens
                if not bool(first[..., 1:].any()):
                    raise DefenseKitError("the first token attends to itself alone: the model reads from left to right")
                sums.append(variance(first, real[:, None]).sum(1))
                done += len(places)
                context.report(done, len(context.rows))
        means = torch.stack(sums).sum(0) / len(context.rows)
        if len(layers) == 1:
            means = means.mean(0, keepdim=True)
        if len(layers) != len(means):
            raise DefenseKitError(f"{len(means)} attention layers, but the names of {len(layers)} are known here")
        found = {}
        for (name, layer), heads in zip(layers, means, strict=True):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            found[f"{name}.weight"] = (
                heads.float().repeat_interleave(weight.shape[1] // len(heads)).expand(weight.shape)
            )
        return Estimate({"head-variance": found})


def variance(values: "Tensor", real: "Tensor") -> "Tensor":
    """The unbiased variance over the last dimension, of what is real."""
    count = real.sum(-1)
    mean = (values * real).sum(-1) / count
    squares = ((values - mean[..., None]) ** 2 * real).sum(-1)
    found: Tensor = squares / (count - 1).clamp(min=1)
    return found
