"""Which layers may get hooks: a test on two samples."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from defensekit.gradients.layers import Sums
from defensekit.gradients.plain import Batch, Loss, rows_of
from defensekit.gradients.taps import Tapped, candidates, taps
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

# The tolerated difference of two float32 gradients, relative to the norm.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class TrialResult:
    """The layers for which hooks are correct, and the parameters that the samples did not use."""

    fit: set[str]
    idle: set[str]


def try_out(
    model: "Module", parameters: "dict[str, Parameter]", batch: Batch, loss: Loss, scratch: "dict[str, Tensor]"
) -> TrialResult | None:
    """Compare the squares that hooks give for the first of two samples with its gradient by autograd.

    A model in 16 bits is tested as a copy in float32, where errors can be distinguished from rounding.

    Args:
        model: the model, in eval mode.
        parameters: its trainable parameters by name.
        batch: a batch; its first two samples are used, or one twice.
        loss: gives the loss of every sample, (N,), from model and batch.
        scratch: a tensor of zeros for every parameter, with the dtype of the sums; zero again afterwards.

    Returns:
        The layers that passed, and unused parameters; None where the first sample has no gradient.

    Raises:
        DefenseKitError: the loss of a sample depends on the other samples; the message names the layer.
    """
    import torch

    if any(torch.finfo(p.dtype).bits < 32 for p in parameters.values()):
        model = copy.deepcopy(model).float()
        copied = dict(model.named_parameters())
        parameters = {name: copied[name] for name in parameters}
    two = {name: torch.cat([values[:1], values[:2][-1:]]) for name, values in batch.items()}
    alone = loss(model, rows_of(two, 0)).detach()
    tapped = candidates(model, parameters)
    sums = Sums(scratch, torch.zeros(2, dtype=torch.float64, device=two["labels"].device))
    refused: set[str] = set()
    try:
        with _sparse(tapped), taps(tapped, 2, sums, refused, trial=True) as reached:
            losses = loss(model, two)
            if losses.shape != (2,):
                raise ValueError(f"expected a loss per sample, shape [2], got {list(losses.shape)}")
            _check_apart(model, two, losses.detach(), alone, loss)
            if losses.requires_grad:
                losses[0].backward()  # type: ignore[no-untyped-call]
        norms = {name: 0.0 if p.grad is None else float(_dense(p.grad)[1].norm()) for name, p in parameters.items()}
        largest = max(norms.values(), default=0.0)
        if not largest:
            return None

        def agrees(name: str) -> bool:
            p = parameters[name]
            if p.grad is None:
                return not bool(scratch[name].any())
            # Far below the model's largest gradient there is only rounding, which differs.
            bound = TOLERANCE * norms[name] + 8 * torch.finfo(p.dtype).eps * largest
            rows, gradient = _dense(p.grad)
            difference = scratch[name][rows].sqrt_().sub_(gradient.abs_())  # in place: neither is needed again
            return float(difference.norm()) <= bound

        fit = {
            what.name
            for what in tapped
            if what.name in reached and what.name not in refused and all(map(agrees, what.names.values()))
        }
        return TrialResult(fit, {name for name, p in parameters.items() if p.grad is None})
    finally:
        for name, p in parameters.items():
            scratch[name].zero_()
            p.grad = None


@contextmanager
def _sparse(tapped: list[Tapped]) -> Iterator[None]:
    """Make embedding gradients sparse: dense ones would take longer than everything else."""
    import torch

    tables = [t.module for t in tapped if isinstance(t.module, torch.nn.Embedding)]
    try:
        for table in tables:
            table.sparse = True
        yield
    finally:
        for table in tables:
            table.sparse = False


def _dense(gradient: "Tensor") -> "tuple[Any, Tensor]":
    """A gradient's rows, as an index, and their values."""
    if not gradient.is_sparse:
        return ..., gradient
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def _check_apart(model: "Module", two: Batch, losses: "Tensor", alone: "Tensor", loss: Loss) -> None:
    """Raise DefenseKitError, naming the layer, where a sample's loss changes when a second sample is added."""
    import torch

    def differ(a: "Tensor", b: "Tensor") -> bool:
        return bool((a - b).float().norm() > TOLERANCE * b.float().norm() + 1e-6)

    if not differ(losses[:1], alone):
        return
    outputs: list[list[tuple[str, Tensor]]] = []
    for rows in (two, rows_of(two, 0)):
        outputs.append([])

        def keep(name: str) -> "Callable[[Module, Any, Any], None]":
            def hook(module: "Module", inputs: Any, output: Any) -> None:
                if isinstance(output, torch.Tensor):
                    outputs[-1].append((name, output[:1]))

            return hook

        handles = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if not list(m.children())]
        try:
            with torch.no_grad():
                loss(model, rows)
        finally:
            for handle in handles:
                handle.remove()
    pairs = zip(*outputs, strict=False)
    culprit = next((name for (name, a), (_, b) in pairs if a.shape != b.shape or differ(a, b)), "the model")
    raise DefenseKitError(
        f"{culprit} gives another output for a sample when a second one is in the batch (or draws random numbers), so "
        "per-sample gradients are not defined"
    )
