"""Per-sample gradients by one backward pass per sample: exact for every model, and slow."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter

Batch = Mapping[str, "Tensor"]
Loss = Callable[["torch.nn.Module", Batch], "Tensor"]


@contextmanager
def undisturbed(model: "torch.nn.Module") -> Iterator[dict[str, "Parameter"]]:
    """The trainable parameters by name, with the model in eval mode and without gradients; all is restored."""
    modes = {module: module.training for module in model.modules()}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: p.grad for name, p in parameters.items()}
    model.eval()
    try:
        for p in parameters.values():
            p.grad = None
        yield parameters
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, p in parameters.items():
            p.grad = gradients[name]


def cross_entropy(model: "torch.nn.Module", batch: Batch) -> "Tensor":
    """The cross-entropy of every sample; where it may have any number of labels, the mean over them of the binary one.

    Args:
        model: a classifier whose output has ``logits``.
        batch: its inputs, and ``labels``: (N,), or whether each label applies, (N, labels), floats.

    Returns:
        The losses, (N,), in float32, or float64 for a model in float64.
    """
    import torch

    logits = model(**{name: values for name, values in batch.items() if name != "labels"}).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels, functional = batch["labels"], torch.nn.functional
    if labels.dim() == 2:
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(1)
    return functional.cross_entropy(logits, labels, reduction="none")


def rows_of(batch: Batch, index: int) -> dict[str, "Tensor"]:
    """One sample of a batch, as a batch of one."""
    return {name: values[index : index + 1] for name, values in batch.items()}


def add_one_by_one(
    model: "torch.nn.Module",
    parameters: dict[str, "Parameter"],
    batch: Batch,
    loss: Loss,
    sums: Mapping[str, "Tensor"],
    norms: "Tensor",
) -> None:
    """Add each sample's squared gradients to ``sums``, and their sums to ``norms`` (N,): a backward pass per sample.

    Raises:
        DefenseKitError: a loss or gradient is NaN or infinite.
    """
    for n in range(len(norms)):
        losses = finite(loss(model, rows_of(batch, n)))
        if not losses.requires_grad:
            continue  # this sample uses none of them
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for name, p in reversed(parameters.items()):  # the last one is nearest to the cause of a NaN
            if p.grad is not None:
                gradient = _dense(p.grad).to(sums[name].dtype)
                square = float(gradient.norm()) ** 2
                if not square < float("inf"):
                    _check(name, gradient)
                norms[n] += square
                sums[name].addcmul_(gradient, gradient)
                p.grad = None


def mean_gradient(
    model: "torch.nn.Module",
    batches: Iterable[Batch],
    *,
    loss: Loss = cross_entropy,
    report: Callable[[int], None] = lambda done: None,
) -> Iterator[dict[str, "Tensor"]]:
    """The gradient of each batch's mean loss, for every trainable parameter.

    Args:
        model: is run in eval mode; modes and gradients are restored.
        batches: padded inputs of the model with ``labels``; the first dimension of every tensor is the samples.
        loss: gives the loss of every sample, (N,), from model and batch.
        report: takes the number of batches done so far.

    Yields:
        For each batch, the gradients by parameter name, of the parameters' shapes, in float32.

    Raises:
        DefenseKitError: a loss or gradient is NaN or infinite.
    """
    import torch

    with undisturbed(model) as parameters:
        for done, batch in enumerate(batches, 1):
            finite(loss(model, batch)).mean().backward()  # type: ignore[no-untyped-call]
            gradients = {}
            for name, p in parameters.items():
                gradients[name] = torch.zeros_like(p).float() if p.grad is None else _dense(p.grad).float()
                _check(name, gradients[name])
                p.grad = None
            yield gradients
            report(done)


def finite(losses: "Tensor") -> "Tensor":
    """Check that losses are finite.

    Args:
        losses: a tensor of losses.

    Returns:
        The same tensor.

    Raises:
        DefenseKitError: a loss is NaN or infinite.
    """
    import torch

    if not bool(torch.isfinite(losses).all()):
        raise DefenseKitError(f"the loss is {float(losses[~torch.isfinite(losses)][0].detach())}")
    return losses


def _dense(gradient: "Tensor") -> "Tensor":
    return gradient.to_dense() if gradient.is_sparse else gradient


def _check(name: str, gradient: "Tensor") -> None:
    import torch

    if not bool(torch.isfinite(gradient).all()):
        raise DefenseKitError(f"the gradient of {name} is NaN or infinite")
