"""Squared per-sample gradients compared with a simple loop in float64."""

import copy
from typing import TYPE_CHECKING

from defensekit.gradients import Batch, Loss, cross_entropy, squared_gradients

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def squared_gradients_by_loop(
    model: "torch.nn.Module", batch: Batch, loss: Loss = cross_entropy
) -> "tuple[dict[str, Tensor], Tensor]":
    """The result of `squared_gradients` for one batch, by a loop over samples with a copy of the model in float64."""
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
    """Compare `defensekit.gradients.squared_gradients` with a loop in float64, for models with unusual modules.

    Args:
        model: the model, in the dtype in which it will be used; dtypes below float32 need a larger ``tolerance``.
        batch: a few samples, padded, with ``labels``.
        loss: gives the loss of every sample, (N,), from model and batch.
        tolerance: the largest relative error |ours - loop| / |loop| (Frobenius norms) that a tensor may have.

    Returns:
        The relative error of every trainable parameter's tensor. For a gradient that is 0 up to rounding (a key's bias,
        which shifts all attention scores alike) the error is relative to the model's largest gradient.

    Raises:
        AssertionError: errors exceed the tolerance; the message names the tensors, the worst first.
        DefenseKitError: per-sample gradients are not defined; the message names the module.
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
    """The diagonal of the empirical Fisher by a simple loop, a ``reference`` for `defensekit.testing.check_plugin`.

        H_i = 1/N sum_n (d loss(x_n, y_n) / d w_i)^2

    Args:
        model: the model, in float64.
        samples: batches of one row each, with ``labels``.

    Returns:
        The statistic ``curvature``: tensors of the parameters' shapes, in float64, by name.
    """
    totals: dict[str, Tensor] = {}
    for sample in samples:
        squares, _ = squared_gradients_by_loop(model, sample)
        for name, square in squares.items():
            totals[name] = totals.get(name, 0) + square / len(samples)
    return {"curvature": totals}
