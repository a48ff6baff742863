"""Squared gradients of models for which the result does not fit in memory: a group of parameters at a time."""

import os
import tempfile
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from defensekit.gradients.batched import squared_gradients, trainable
from defensekit.gradients.plain import Batch, Loss, cross_entropy
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Bytes per weight: its sum and, while layers are tested, its gradient.
HELD = 8


def groups(model: "torch.nn.Module", held: int) -> list[list[str]]:
    """Consecutive groups of trainable parameters whose sums and trial gradients take at most ``held`` bytes each.

    A parameter that takes more is a group of its own.
    """
    grouped: list[list[str]] = [[]]
    left = held
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if grouped[-1] and HELD * p.numel() > left:
            grouped.append([])
            left = held
        grouped[-1].append(name)
        left -= HELD * p.numel()
    return grouped


def mean_squared_gradients(
    model: "torch.nn.Module",
    batches: Callable[[], Iterable[Batch]],
    samples: int,
    *,
    held: int,
    loss: Loss = cross_entropy,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> "tuple[dict[str, Tensor], Tensor]":
    """The mean over samples of squared per-sample gradients, as `squared_gradients` gives their sum.

    Where the sums take more than ``held`` bytes, the parameters are done in `groups`, each by a forward pass of all
    samples and a backward pass down to the group. Results of finished groups are memory-mapped from an unnamed
    temporary file.

    Args:
        model: as for `squared_gradients`.
        batches: yields the same batches again for each group.
        samples: how many samples the batches have in all.
        held: bytes for sums and trial gradients at a time.
        loss: gives the loss of every sample, (N,), from model and batch.
        report: takes the number of samples done, and their total over all groups.

    Returns:
        The means by parameter name, in the parameters' shapes; and each sample's squared gradient norm, (N,), float64.

    Raises:
        DefenseKitError: as for `squared_gradients`; or the folder for temporary files is full.
    """
    parts = groups(model, held)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    means: dict[str, Tensor] = {}
    norms: Tensor | None = None
    for number, group in enumerate(parts):

        def done(count: int, before: int = number * samples) -> None:
            report(before + count, len(parts) * samples)

        with trainable(parameters, group):
            sums, squared = squared_gradients(model, batches(), loss=loss, report=done)
        norms = squared if norms is None else norms + squared
        for name in group:
            mean = sums.pop(name).div_(samples)
            means[name] = mean if len(parts) == 1 else _aside(mean)
    assert norms is not None  # there is at least one group
    return means, norms


def _aside(tensor: "Tensor") -> "Tensor":
    """The same values, memory-mapped from an unnamed temporary file."""
    import torch

    size = tensor.numel() * tensor.element_size()
    with tempfile.NamedTemporaryFile(prefix="defensekit-") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, but a crash when pages are written
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
        except OSError as error:
            folder = tempfile.gettempdir()
            raise DefenseKitError(
                f"{folder} has too little space for {size / 2**20:,.0f} MiB of curvature ({error.strerror}); "
                "set TMPDIR to another folder"
            ) from error
        mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        return mapped.copy_(tensor.cpu().reshape(-1)).reshape(tensor.shape)
