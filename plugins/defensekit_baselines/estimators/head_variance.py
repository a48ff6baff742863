"""How much the attention of a head varies."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import DefenseKitError, Estimate, Estimator, EstimatorContext, Field
from defensekit_baselines.attention import from_the_read_token
from defensekit_baselines.estimators.layers import inputs_of, linear_layers, per_input
from defensekit_baselines.layout import HEADS_OUT

if TYPE_CHECKING:
    from torch import Tensor


class HeadVariance(Estimator):
    """The variance over a row's tokens of each head's attention from the token that the classifier reads.

    It is the mean over clean rows, at the suspect, for every entry of the head's columns of the output matrix.

    PURE (Zhao et al., ICML 2024) prunes the heads with the smallest. The authors' code (xingyizhao/PURE) counts padding
    as tokens with an attention of 0; here padding does not count, so that the result does not depend on it. A matrix
    that all layers share, as in ALBERT, has the mean over the layers. There the token is BERT's first; that of models
    which read from left to right, such as GPT-2 and Llama, is a row's last: this extension is ours.

        estimator: {name: head-variance}
    """

    provides: ClassVar[frozenset[str]] = frozenset({"head-variance"})

    batch_size: int = Field(64, ge=1, description="rows per batch; the result does not depend on it")

    def estimate(self, context: EstimatorContext) -> Estimate:
        import torch

        model = context.model("suspect").eval()
        model.set_attn_implementation("eager")  # the fused kernels return no attention
        layers = [(name, layer) for name, layer in linear_layers(model) if HEADS_OUT.search(f"{name}.weight")]
        sums: list[Tensor] = []
        done = 0
        with torch.inference_mode():
            for indices, batch in context.batches(model, size=self.batch_size):
                out = model(**{k: v for k, v in batch.items() if k != "labels"}, output_attentions=True)
                mask = batch["attention_mask"]
                attention = from_the_read_token(out.attentions, mask).double()
                sums.append(variance(attention, mask.bool()[:, None]).sum(1))
                done += len(indices)
                context.report(done, len(context.rows))
        means = torch.stack(sums).sum(0) / len(context.rows)
        if len(layers) == 1:
            means = means.mean(0, keepdim=True)
        if len(layers) != len(means):
            raise DefenseKitError(f"{len(means)} attention layers, but the names of {len(layers)} are known here")
        statistics = {}
        for (name, layer), heads in zip(layers, means, strict=True):
            size = inputs_of(layer) // len(heads)
            statistics[f"{name}.weight"] = per_input(layer, heads.float().repeat_interleave(size))
        return Estimate({"head-variance": statistics})


def variance(values: "Tensor", real: "Tensor") -> "Tensor":
    """The unbiased variance over the last dimension, where ``real`` is true."""
    count = real.sum(-1)
    mean = (values * real).sum(-1) / count
    squares = ((values - mean[..., None]) ** 2 * real).sum(-1)
    unbiased: Tensor = squares / (count - 1).clamp(min=1)
    return unbiased
