"""The plain way: one backward pass per sample. Exact for every model; its cost is what a faster way is measured by."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from defensekit.errors import DefenseKitError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch = Mapping[str, "Tensor"]


@contextmanager
def _undisturbed(model: "torch.nn.Module") -> Iterator[dict[str, "torch.nn.Parameter"]]:
    """The trainable parameters by name, in eval mode, with no gradients; all is as before afterwards."""
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


def _loss(model: "torch.nn.Module", batch: Batch) -> "Tensor":
    """The mean cross-entropy of the batch's ``labels``, in float32."""
    import torch

    inputs = {name: values for name, values in batch.items() if name != "labels"}
    loss = torch.nn.functional.cross_entropy(model(**inputs).logits.float(), batch["labels"])
    if not bool(torch.isfinite(loss)):
        raise DefenseKitError(f"the loss is {float(loss)}")
    return loss


def _check(name: str, gradient: "Tensor") -> None:
    import torch

    if not bool(torch.isfinite(gradient).all()):
        raise DefenseKitError(f"the gradient of {name} is NaN or infinite")


def squared_gradients(
    model: "torch.nn.Module",
    samples: Iterable[Batch],
    *,
    report: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, "Tensor"], "Tensor"]:
    """The sum over samples of squared per-sample gradients of the loss, for every trainable parameter.

        S_i = sum_n (d loss(x_n, y_n) / d w_i)^2

    Args:
        model: a classifier whose output has ``logits``; runs in eval mode, and is as before afterwards.
        samples: the inputs of the model with ``labels``, each a batch of one.

    Returns:
        The sums by parameter name, float32, of the parameters' shapes; and each sample's squared gradient norm, (N,).

    Raises:
        DefenseKitError: a loss or gradient is NaN or infinite.
    """
    import torch

    norms = []
    with _undisturbed(model) as parameters:
        sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        for done, sample in enumerate(samples, 1):
            if len(sample["labels"]) != 1:
                raise ValueError(f"expected batches of one sample, got {len(sample['labels'])}")
            _loss(model, sample).backward()  # type: ignore[no-untyped-call]
            norm = 0.0
            for name, p in parameters.items():
                if p.grad is not None:
                    gradient = p.grad.float()
                    square = float(gradient.norm()) ** 2
                    if not square < float("inf"):
                        _check(name, gradient)
                    norm += square
                    sums[name].addcmul_(gradient, gradient)
                    p.grad = None
            norms.append(norm)
            report(done)
    return sums, torch.tensor(norms, dtype=torch.float64)


def mean_gradient(
    model: "torch.nn.Module", batches: Iterable[Batch], *, report: Callable[[int], None] = lambda done: None
) -> Iterator[dict[str, "Tensor"]]:
    """The gradient of each batch's mean loss, for every trainable parameter, one batch after the other.

    Raises:
        DefenseKitError: a loss or gradient is NaN or infinite.
    """
    import torch

    with _undisturbed(model) as parameters:
        for done, batch in enumerate(batches, 1):
            _loss(model, batch).backward()  # type: ignore[no-untyped-call]
            gradients = {}
            for name, p in parameters.items():
                gradients[name] = torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float()
                _check(name, gradients[name])
                p.grad = None
            yield gradients
            report(done)
