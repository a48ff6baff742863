"""Which layers may be tapped: tried out on two samples, not assumed."""

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

# How far two ways of computing a gradient in float32 may be apart, relative to its norm.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """The layers for which taps are right, and the parameters that the samples did not use."""

    fit: set[str]
    idle: set[str]


def try_out(
    model: "Module", parameters: "dict[str, Parameter]", batch: Batch, loss: Loss, scratch: "dict[str, Tensor]"
) -> Verdict:
    """Hold the squares that taps give for the first sample, beside a second one, against its gradient by autograd.

    A model in 16 bits is tried out as a copy in float32: there, what is wrong can be told from what is rounded.

    Args:
        scratch: a tensor of 0 for every parameter, as the sums will be; 0 again afterwards.

    Raises:
        DefenseKitError: the loss of a sample depends on the samples beside it; the message names the layer.
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

        def agrees(name: str) -> bool:
            p = parameters[name]
            if p.grad is None:
                return not bool(scratch[name].any())
            # Far below the model's largest gradient there is nothing but rounding, which two ways do differently.
            bound = TOLERANCE * norms[name] + 8 * torch.finfo(p.dtype).eps * largest
            rows, gradient = _dense(p.grad)
            difference = scratch[name][rows].sqrt_().sub_(gradient.abs_())  # in place: neither is needed again
            return float(difference.norm()) <= bound

        fit = {
            what.name
            for what in tapped
            if what.name in reached and what.name not in refused and all(map(agrees, what.names.values()))
        }
        return Verdict(fit, {name for name, p in parameters.items() if p.grad is None})
    finally:
        for name, p in parameters.items():
            scratch[name].zero_()
            p.grad = None


@contextmanager
def _sparse(tapped: list[Tapped]) -> Iterator[None]:
    """Gradients of tables as the rows that were looked up: the whole would take longer than the rest together."""
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
    """The rows that a gradient has, as an index, and its values there."""
    if not gradient.is_sparse:
        return ..., gradient
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def _check_apart(model: "Module", two: Batch, losses: "Tensor", alone: "Tensor", loss: Loss) -> None:
    """Raise DefenseKitError, naming the layer, where a sample's loss is another beside a second sample."""
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
        f"{culprit} answers to a sample differently when another stands beside it (or draws random numbers), so that "
        "a sample has no gradient of its own"
    )
