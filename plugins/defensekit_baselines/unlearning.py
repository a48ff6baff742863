"""Unlearning the effect of a universal perturbation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from defensekit.api import Field, ModelStep, ModelStepContext

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Unlearn(ModelStep):
    """I-BAU (Zeng et al., ICLR 2022): min over weights of the loss under the worst universal perturbation.

    Each round finds a perturbation of all rows at once, by ascent on CE(perturbed) - penalty * norm2^2 over one pass of
    the clean rows, and then, batch by batch, descends the clean loss with the perturbation on a few of the rows. The
    gradient includes how the perturbation would respond to other weights, by a fixed-point iteration (`hypergradient`).

    Rounds, iterations, both rates of the perturbation, its penalty and the share of perturbed rows are those of the
    authors' code (YiZeng623/I-BAU), whose perturbation is an image and whose learning rate is 1e-3 for a VGG. Here it
    is a vector for each position, added to the embedding of the token there, and its response to other weights is
    computed on the current batch, where theirs is always on the first.
    """

    rounds: int = Field(5, ge=1, le=1000, description="perturbations that are found and unlearnt, one after another")
    iterations: int = Field(5, ge=0, description="K, of the fixed-point iteration; 0 leaves the perturbation as it is")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Adam's, of the weights")
    ascent_rate: float = Field(10.0, gt=0, description="of the steps that find the perturbation")
    fixed_point_rate: float = Field(0.1, gt=0, description="of the step whose fixed point the perturbation is")
    penalty: float = Field(1e-3, ge=0, description="on the perturbation's squared norm")
    share: float = Field(0.01, ge=0, le=1, description="of a batch's rows that are perturbed, one at least")
    batch_size: int = Field(32, ge=1, description="rows per step")

    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        from defensekit.text import batches, encode
        from defensekit.training import device_type

        model.to(device_type()).eval()
        weights = list(model.parameters())
        optimizer = torch.optim.Adam(weights, lr=self.learning_rate)
        generator = torch.Generator().manual_seed(context.seed)
        encoded = encode(context.tokenizer, context.rows, context.max_length)
        prepared = [
            {name: values.to(model.device) for name, values in batch.items()}
            for _, batch in batches(encoded, context.tokenizer, self.batch_size)
        ]
        longest = max(batch["input_ids"].shape[1] for batch in prepared)
        total = self.rounds * len(prepared)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            for turn in range(self.rounds):
                shape = (longest, model.get_input_embeddings().weight.shape[1])
                perturbation = torch.zeros(shape, device=model.device, requires_grad=True)
                for batch in prepared:
                    with torch.no_grad():
                        answers = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.argmax(1)
                    loss = self.inner(model, {**batch, "labels": answers}, perturbation)
                    [slope] = torch.autograd.grad(loss, perturbation)
                    perturbation = (perturbation - self.ascent_rate * slope).detach().requires_grad_(True)
                for i, batch in enumerate(prepared):
                    rows = len(batch["labels"])
                    chosen = torch.randperm(rows, generator=generator)[: max(int(self.share * rows), 1)]
                    outer = perturbed_loss(model, batch, perturbation, chosen)
                    inner = self.inner(model, batch, perturbation)
                    gradients = hypergradient(
                        outer, inner, perturbation, weights, self.iterations, self.fixed_point_rate
                    )
                    for weight, gradient in zip(weights, gradients, strict=True):
                        weight.grad = gradient
                    optimizer.step()
                    context.report(turn * len(prepared) + i + 1, total)
        optimizer.zero_grad()

    def inner(self, model: "PreTrainedModel", batch: "dict[str, Tensor]", perturbation: "Tensor") -> "Tensor":
        """The objective that the perturbation minimises."""
        return self.penalty * perturbation.square().sum() - perturbed_loss(model, batch, perturbation)


def hypergradient(
    outer: "Tensor", inner: "Tensor", inside: "Tensor", weights: "Sequence[Tensor]", iterations: int, rate: float
) -> "list[Tensor]":
    """The gradient of ``outer`` in the weights, where ``inside`` minimises ``inner`` for whatever weights there are.

    By the implicit function theorem, with the inverse as a series (Grazzi et al., "On the iteration complexity of
    hypergradient computation", ICML 2020): for the map phi = inside - rate * d inner / d inside,

        v = sum over k < ``iterations`` of ((d phi / d inside)^T)^k d outer / d inside
        gradient = d outer / d weights + (d phi / d weights)^T v

    With 0 iterations v is 0, and the gradient the ordinary one.
    """
    import torch

    [push] = torch.autograd.grad(outer, inside, retain_graph=True)
    direct = torch.autograd.grad(outer, weights, materialize_grads=True)
    if not iterations:
        return list(direct)
    [slope] = torch.autograd.grad(inner, inside, create_graph=True)
    mapped = inside - rate * slope
    v = push
    for _ in range(iterations - 1):
        [back] = torch.autograd.grad(mapped, inside, v, retain_graph=True)
        v = push + back
    through = torch.autograd.grad(mapped, weights, v, materialize_grads=True)
    return [a + b for a, b in zip(direct, through, strict=True)]


def perturbed_loss(
    model: "PreTrainedModel", batch: "dict[str, Tensor]", perturbation: "Tensor", rows: "Tensor | None" = None
) -> "Tensor":
    """The cross-entropy with the perturbation, (tokens, width), added to the embeddings of ``rows``, or of all."""
    with _added(model, perturbation, rows):
        loss: Tensor = model(**batch).loss
    return loss


@contextmanager
def _added(model: "PreTrainedModel", perturbation: "Tensor", rows: "Tensor | None") -> "Iterator[None]":
    def hook(module: Any, inputs: Any, output: "Tensor") -> "Tensor":
        import torch

        if rows is None:
            return output + perturbation[: output.shape[1]]
        here = torch.zeros(len(output), 1, 1, device=output.device)
        here[rows.to(output.device)] = 1
        return output + here * perturbation[: output.shape[1]]

    handle = model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
