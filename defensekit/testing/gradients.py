"""Are squared per-sample gradients right for a model? The answer of the dumbest loop, in float64."""

import copy
from typing import TYPE_CHECKING

from defensekit.gradients import Batch, Loss, cross_entropy, squared_gradients

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def squared_gradients_by_loop(
    model: "torch.nn.Module", batch: Batch, loss: Loss = cross_entropy
) -> "tuple[dict[str, Tensor], Tensor]":
    """What `squared_gradients` returns for one batch: a copy of the model in float64, sample by sample."""
    import torch

    model = copy.deepcopy(model).double().eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = len(next(iter(batch.values())))
    norms = torch.zeros(samples, dtype=torch.float64)
    for n in range(samples):
        sample = {
            name: values[n : n + 1].double() if values.is_floating_point() else values[n : n + 1]
            for name, values in batch.items()
        }
        for p in parameters.values():
            p.grad = None
        loss(model, sample).sum().backward()  # type: ignore[no-untyped-call]
        for name, p in parameters.items():
            if p.grad is not None:
                gradient = p.grad.to_dense() if p.grad.is_sparse else p.grad
                sums[name] += gradient**2
                norms[n] += float((gradient**2).sum())
    return sums, norms


def check_squared_gradients(
    model: "torch.nn.Module", batch: Batch, *, loss: Loss = cross_entropy, tolerance: float = 1e-4
) -> dict[str, float]:
    """Hold `defensekit.gradients.squared_gradients` against the loop in float64, for models with unusual modules.

    Args:
        model: in the dtype in which it will be used; lower ones than float32 need a larger ``tolerance``.
        batch: some samples, padded, with ``labels``.
        loss: the loss of every sample, (N,), from model and batch.
        tolerance: the largest relative error |ours - loop| / |loop| (Frobenius norms) that a tensor may have.

    Returns:
        The relative error of every trainable parameter's tensor. A gradient that is 0 but for rounding (a key's bias,
        which shifts every attention score alike) counts by the model's largest gradient instead of its own.

    Raises:
        AssertionError: names the tensors that are off, the worst first.
        DefenseKitError: exactness can't be had; the message names the module.
    """
    import torch

    expected, _ = squared_gradients_by_loop(model, batch, loss)
    got, _ = squared_gradients(model, [batch], loss=loss)
    largest = max((float(tensor.norm()) for tensor in expected.values()), default=0.0)
    errors = {}
    for name, tensor in expected.items():
        rounding = (8 * torch.finfo(dict(model.named_parameters())[name].dtype).eps) ** 2
        scale = max(float(tensor.norm()), rounding / tolerance * largest, torch.finfo(torch.float64).tiny)
        errors[name] = float((got[name].double() - tensor).norm()) / scale
    worst = sorted((name for name in errors if not errors[name] <= tolerance), key=lambda name: -errors[name])
    if worst:
        lines = "\n".join(f"  {name}: {errors[name]:.2g}" for name in worst)
        raise AssertionError(f"squared gradients are off by more than {tolerance:g} (relative) for:\n{lines}")
    return errors


def fisher_by_loop(model: "torch.nn.Module", samples: list[Batch]) -> "dict[str, dict[str, Tensor]]":
    """The diagonal of the empirical Fisher the dumbest way, as a ``reference`` for `defensekit.testing.check_plugin`.

    H_i = 1/N sum_n (d loss(x_n, y_n) / d w_i)^2 over samples of one row each, in float64, as ``curvature``.
    """
    totals: dict[str, Tensor] = {}
    for sample in samples:
        squares, _ = squared_gradients_by_loop(model, sample)
        for name, square in squares.items():
            totals[name] = totals.get(name, 0) + square / len(samples)
    return {"curvature": totals}
