"""Squared per-sample gradients at the cost of one batched forward and backward pass.

A hook on every layer records its input and the gradient of its output. From these, each sample's gradient is a small
product, which is squared and added before the next (see taps.py, layers.py and products.py). Ordinary weight gradients
are never computed.

Whether this is correct for a layer is tested on two samples (trial.py). Layers that fail the test (tied weights,
weights that are also used elsewhere, a layer called twice, an input whose first dimension is not the samples) and
unknown kinds of layer take one backward pass per sample (plain.py). The test can't detect a use that begins with later
samples, such as a weight that is used again, outside its layer, for long samples only.
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

    This takes one forward and backward pass per batch, without the weight gradients; parameters of layers that are not
    supported take another pass per sample. `tokens_within` gives a batch size that fits in memory.

    Args:
        model: is run in eval mode; modes, gradients, ``requires_grad``, hooks and random state are restored.
        batches: padded inputs of the model with ``labels``; the first dimension of every tensor is the samples.
        loss: gives the loss of every sample, (N,), from model and batch.
        report: takes the number of samples done so far.

    Returns:
        The sums by parameter name, of the parameters' shapes, in float32 (float64 for float64 parameters); and each
        sample's squared gradient norm, (N,), in float64.

    Raises:
        DefenseKitError: a loss or gradient is NaN or infinite; or the loss of a sample depends on the other samples of
            its batch, so that per-sample gradients are not defined (the message names the layer).
    """
    import torch

    norms: list[Tensor] = []
    done = 0
    with undisturbed(model) as parameters:
        sums = _zeros(parameters)
        engine: _Engine | None = None
        for batch in batches:
            several = len(batch["labels"]) > 1
            # The trial tells samples from tokens by their number, two.
            short = batch["input_ids"].shape[1] <= 2 if "input_ids" in batch else False
            # An engine whose trial was of one sample, twice, is tried again.
            if not short and (engine is None or (several and not engine.several)):
                scratch = _zeros(parameters) if done else sums  # which is 0 until then, and afterwards again
                engine = _Engine.for_samples(model, parameters, batch, loss, scratch, several) or engine
            norms.append((engine.add(batch, sums) if engine else _alone(model, parameters, batch, loss, sums)).cpu())
            done += len(norms[-1])
            report(done)
    return sums, torch.cat(norms) if norms else torch.zeros(0, dtype=torch.float64)


def tokens_within(model: "torch.nn.Module", budget: int) -> int:
    """The largest batch, in padded tokens, for which `squared_gradients` stays within a memory budget.

    The budget covers two float32 copies of the widest layer's input and output, but not activations, the result, and
    tiles of products (up to 4 MiB on a CPU, 64 MiB on a GPU).

    Args:
        model: the model.
        budget: bytes.

    Returns:
        The number of tokens, at least 1.
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
    """Layers with hooks, parameters that take a pass per sample, and parameters that no sample has used so far."""

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
    ) -> "_Engine | None":
        """An engine for a model, tested on a batch's first samples; ``scratch`` is 0 before and after.

        None where the first sample has no gradient, which tells nothing.
        """
        if (result := try_out(model, parameters, batch, loss, scratch)) is None:
            return None
        tapped = [what for what in candidates(model, parameters) if what.name in result.fit]
        by_tap = {name for what in tapped for name in what.names.values()}
        rest = {name: p for name, p in parameters.items() if name not in by_tap}
        idle = {name: p for name, p in rest.items() if name in result.idle}
        plain = {name: p for name, p in rest.items() if name not in result.idle}
        return cls(model, loss, parameters, tapped, plain, idle, several)

    def add(self, batch: Batch, sums: dict[str, "Tensor"]) -> "Tensor":
        """Add a batch's squared gradients to ``sums``; returns the samples' squared norms."""
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
            # The last parameter is the first of the backward pass, and so nearest to the cause.
            bad = (name for name in reversed(sums) if not bool(torch.isfinite(sums[name]).all()))
            raise DefenseKitError(f"the gradient of {next(bad, 'some weight')} is NaN or infinite")
        return into.norms


def _alone(
    model: "Module", parameters: dict[str, "Parameter"], batch: Batch, loss: Loss, sums: dict[str, "Tensor"]
) -> "Tensor":
    """Add a batch's squared gradients to ``sums``, one sample after the other; returns their squared norms."""
    return _Engine(model, loss, parameters, [], dict(parameters), {}, several=False).add(batch, sums)


@contextmanager
def trainable(parameters: Mapping[str, "Parameter"], chosen: Collection[str]) -> Iterator[None]:
    """Within the block only the chosen parameters require a gradient; before and after it all do."""
    try:
        for name, p in parameters.items():
            p.requires_grad_(name in chosen)
        yield
    finally:
        for p in parameters.values():
            p.requires_grad_(True)
