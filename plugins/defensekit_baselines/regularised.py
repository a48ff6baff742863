"""Fine-tuning with a penalty on hidden states or attention."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Field, ModelStepContext, TaskKind
from defensekit_baselines.attention import from_the_read_token
from defensekit_baselines.training import Trained, real_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    Batch = dict[str, Tensor]


class LayerConsistency(Trained):
    """CROW (Min et al. 2024): fine-tune so that neighbouring layers agree, even where the embeddings are perturbed.

        L = CE + weight * mean over l, tokens of (1 - cos(h_l, h_l+1)), at embeddings + eps * sign(gradient)

    the gradient being that of the same mean at the embeddings themselves. eps and weight are those of the authors' code
    (NayMyatMin/CROW), which fine-tunes adapters of generating models, and leaves out the last layer's states. Here all
    weights are trained, of classifiers as well, every pair of layers counts, and padding does not.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "multi-label", "generation"})

    weight: float = Field(5.5, ge=0, description="of the consistency loss")
    eps: float = Field(0.1, ge=0, description="how far each entry of an embedding is moved")

    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        self.fine_tune(model, context, self.loss)

    def loss(self, model: "PreTrainedModel", batch: "Batch") -> "Tensor":
        """The loss of a batch."""
        import torch

        tokens = {name: values for name, values in batch.items() if name not in ("input_ids", "labels")}
        embedded = model.get_input_embeddings()(batch["input_ids"])
        start = embedded.detach().requires_grad_(True)
        [gradient] = torch.autograd.grad(inconsistency(model, start, tokens), start)
        disturbed = inconsistency(model, embedded + self.eps * gradient.sign(), tokens)
        own: Tensor = model(**batch).loss
        return own + self.weight * disturbed


def inconsistency(model: "PreTrainedModel", embedded: "Tensor", tokens: "Batch") -> "Tensor":
    """The mean of 1 - cos over neighbouring layers and real tokens."""
    import torch

    states = torch.stack(model(inputs_embeds=embedded, output_hidden_states=True, **tokens).hidden_states[1:])
    apart = 1 - torch.nn.functional.cosine_similarity(states[:-1].float(), states[1:].float(), dim=-1)
    real = real_tokens(tokens).expand(apart.shape)
    return (apart * real).sum() / real.sum().clamp(min=1)


class AttentionPenalty(Trained):
    """PURE's second step (Zhao et al., ICML 2024): fine-tune with a penalty on the read token's attention.

        L = CE + weight * mean over layers of sum over heads of norm2(attention from the read token)

    the norm over the batch's rows and tokens; the read token is the one that the classifier reads. Weight, epochs,
    learning rate and batch size are those of the authors' code (xingyizhao/PURE), which gives every layer a coefficient
    of its own, from the variances of its heads; here all have the same. There the read token is BERT's first; that it
    is a row's last in models that read from left to right is our extension. There the model's encoder is suspect and
    gets a new head, and the task's whole training set is clean.
    """

    weight: float = Field(0.15, ge=0, description="of the penalty")

    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")  # the fused kernels return no attention
        self.fine_tune(model, context, self.loss)
        model.set_attn_implementation(before)

    def loss(self, model: "PreTrainedModel", batch: "Batch") -> "Tensor":
        """The loss of a batch."""
        out = model(**batch, output_attentions=True)
        attention = from_the_read_token(out.attentions, batch["attention_mask"])
        penalty = attention.float().square().sum(dim=(1, 3)).clamp(min=1e-12).sqrt().sum(1).mean()
        loss: Tensor = out.loss + self.weight * penalty
        return loss
