"""Squared per-sample gradients at the cost of one batched forward and backward pass.

A hook on every layer taps what goes in and the gradient of what comes out; from these, each sample's gradient is a
small product, squared and added before the next (see taps.py, layers.py and products.py). Ordinary weight gradients are
never formed.

Whether that is right for a layer is not assumed but tried out (trial.py). Layers that fail (weights that are tied or
used elsewhere too, a layer called twice, an input whose first dimension is not the samples) and layers of unknown kinds
go the plain way. What the trial can't see is a use that begins with later samples: a weight that is used a second time,
without its layer, for long ones only.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from defensekit.gradients.layers import Sums
from defensekit.gradients.plain import Batch, Loss, add_one_by_one, cross_entropy, finite, undisturbed
from defensekit.gradients.taps import Tapped, candidates, taps
from defensekit.gradients.trial import try_out
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module, Parameter


def squared_gradients(
    model: "torch.nn.Module",
    batches: Iterable[Batch],
    *,
    loss: Loss = cross_entropy,
    report: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, "Tensor"], "Tensor"]:
    """The sum over samples of squared per-sample gradients of the loss, for every trainable parameter.

        S_i = sum_n (d loss(x_n, y_n) / d w_i)^2

    One forward and backward pass per batch, without the weight gradients; parameters that need the plain way take a
    pass per sample besides. `tokens_within` says how large batches may be.

    Args:
        model: runs in eval mode; modes, gradients, ``requires_grad``, hooks and random state are as before afterwards.
        batches: inputs of the model with ``labels``, padded; the first dimension of every tensor is the samples.
        loss: the loss of every sample, (N,), from model and batch.
        report: told how many samples are done.

    Returns:
        The sums by parameter name, of the parameters' shapes, in float32 (float64 for float64 parameters); and each
        sample's squared gradient norm, (N,), in float64.

    Raises:
        DefenseKitError: a loss or gradient is NaN or infinite; or the loss of a sample depends on the samples beside
            it, so that there is no gradient of its own: the message names the layer.
    """
    import torch

    norms: list[Tensor] = []
    done = 0
    with undisturbed(model) as parameters:
        sums = _zeros(parameters)
        engine: _Engine | None = None
        for batch in batches:
            several = len(batch["labels"]) > 1
            if engine is None:
                engine = _Engine.for_samples(model, parameters, batch, loss, sums, several)
            elif several and not engine.several:  # a sample beside itself says nothing of samples side by side
                engine = _Engine.for_samples(model, parameters, batch, loss, _zeros(parameters), several)
            norms.append(engine.add(batch, sums).cpu())
            done += len(norms[-1])
            report(done)
    return sums, torch.cat(norms) if norms else torch.zeros(0, dtype=torch.float64)


def tokens_within(model: "torch.nn.Module", budget: int) -> int:
    """How many padded tokens a batch may have so that `squared_gradients` holds no more than ``budget`` bytes besides
    activations and its result: two float32 copies of what goes in and out of the widest layer. At least 1.

    Tiles of products come on top, whatever the budget: up to 4 MiB on a CPU, 64 MiB on a GPU.
    """
    import torch

    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    wide = max((sum(p.shape) for p in model.parameters() if p.dim() == 2 and id(p) not in tables), default=1)
    return max(1, budget // (2 * 4 * wide))


def _zeros(parameters: Mapping[str, "Parameter"]) -> dict[str, "Tensor"]:
    import torch

    return {
        name: torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
        for name, p in parameters.items()
    }


@dataclass
class _Engine:
    """What is tapped, what goes the plain way, and what no sample has used so far."""

    model: "Module"
    loss: Loss
    parameters: dict[str, "Parameter"]
    tapped: list[Tapped]
    plain: dict[str, "Parameter"]
    idle: dict[str, "Parameter"]
    several: bool

    @classmethod
    def for_samples(
        cls,
        model: "Module",
        parameters: dict[str, "Parameter"],
        batch: Batch,
        loss: Loss,
        scratch: dict[str, "Tensor"],
        several: bool,
    ) -> "_Engine":
        """An engine for a model, tried out on a batch's first samples; ``scratch`` is 0 before and after."""
        verdict = try_out(model, parameters, batch, loss, scratch)
        tapped = [what for what in candidates(model, parameters) if what.name in verdict.fit]
        by_tap = {name for what in tapped for name in what.names.values()}
        rest = {name: p for name, p in parameters.items() if name not in by_tap}
        idle = {name: p for name, p in rest.items() if name in verdict.idle}
        plain = {name: p for name, p in rest.items() if name not in verdict.idle}
        return cls(model, loss, parameters, tapped, plain, idle, several)

    def add(self, batch: Batch, sums: dict[str, "Tensor"]) -> "Tensor":
        """Add a batch's squared gradients to ``sums``; the samples' squared norms."""
        import torch

        samples = len(batch["labels"])
        into = Sums(sums, torch.zeros(samples, dtype=torch.float64, device=batch["labels"].device))
        refused: set[str] = set()
        if self.tapped or self.idle:
            with trainable(self.parameters, self.idle), taps(self.tapped, samples, into, refused):
                losses = finite(self.loss(self.model, batch))
                if losses.requires_grad:
                    losses.sum().backward()  # type: ignore[no-untyped-call]
        for name in [name for name, p in self.idle.items() if p.grad is not None]:
            self.plain[name] = self.idle.pop(name)
            self.plain[name].grad = None
        for what in [what for what in self.tapped if what.name in refused]:
            self.tapped.remove(what)
            self.plain |= {name: self.parameters[name] for name in what.names.values()}
        if self.plain:
            with trainable(self.parameters, self.plain):
                add_one_by_one(self.model, self.plain, batch, self.loss, sums, into.norms)
        if not bool(torch.isfinite(into.norms).all()):
            # The last in the model is the first of the backward pass, nearest to the cause.
            bad = (name for name in reversed(sums) if not bool(torch.isfinite(sums[name]).all()))
            raise DefenseKitError(f"the gradient of {next(bad, 'some weight')} is NaN or infinite")
        return into.norms


@contextmanager
def trainable(parameters: Mapping[str, "Parameter"], chosen: Collection[str]) -> Iterator[None]:
    """Only the chosen parameters require a gradient; all did before, and do afterwards."""
    try:
        for name, p in parameters.items():
            p.requires_grad_(name in chosen)
        yield
    finally:
        for p in parameters.values():
            p.requires_grad_(True)
