"""Squared per-sample gradients at the cost of one batched forward and backward pass.

A hook on every layer taps what goes in and the gradient of what comes out; from these, each sample's gradient is a
small product, squared and added before the next (see layers.py and products.py). Ordinary weight gradients are never
formed.

Whether that is right for a layer is not assumed but tried out: on the first two samples, the squares that the taps
give for one of them are held against its gradient by autograd. Layers that fail (weights that are tied or used
elsewhere too, a layer called twice, an input whose first dimension is not the samples) and layers of unknown kinds go
the plain way.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from defensekit.errors import DefenseKitError
from defensekit.gradients.layers import Layer, Sums, layer_for
from defensekit.gradients.plain import Batch, Loss, add_one_by_one, cross_entropy, finite, rows_of, undisturbed

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
        sums = {name: torch.zeros_like(p, dtype=_dtype(p.dtype)) for name, p in parameters.items()}
        engine = None
        for batch in batches:
            engine = engine or _Engine.tried_out(model, parameters, batch, loss, sums)
            norms.append(engine.add(batch, sums).cpu())
            done += len(norms[-1])
            report(done)
    return sums, torch.cat(norms) if norms else torch.zeros(0, dtype=torch.float64)


def tokens_within(model: "torch.nn.Module", budget: int) -> int:
    """How many padded tokens a batch may have so that `squared_gradients` holds no more than ``budget`` bytes besides
    activations and its result: two float32 copies of what goes in and out of the widest layer. At least 1."""
    wide = max((sum(p.shape) for p in model.parameters() if p.dim() == 2 and not _is_table(model, p)), default=1)
    return max(1, budget // (2 * 4 * wide))


def _is_table(model: "Module", parameter: "Parameter") -> bool:
    import torch

    return any(isinstance(m, torch.nn.Embedding) and m.weight is parameter for m in model.modules())


def _dtype(dtype: "torch.dtype") -> "torch.dtype":
    import torch

    return torch.promote_types(dtype, torch.float32)


@dataclass
class _Tapped:
    """A layer whose parameters are done by tap: their full names by their own."""

    name: str
    module: "Module"
    layer: Layer
    names: dict[str, str]


@dataclass
class _Engine:
    """What is tapped, what goes the plain way, and what was not used by the samples it was tried out on."""

    model: "Module"
    loss: Loss
    parameters: dict[str, "Parameter"]
    tapped: list[_Tapped] = field(default_factory=list)
    plain: dict[str, "Parameter"] = field(default_factory=dict)
    idle: dict[str, "Parameter"] = field(default_factory=dict)

    @classmethod
    def tried_out(
        cls,
        model: "Module",
        parameters: dict[str, "Parameter"],
        batch: Batch,
        loss: Loss,
        scratch: dict[str, "Tensor"],
    ) -> "_Engine":
        """An engine that taps the layers for which it is right. ``scratch``, the sums to be, is 0 before and after."""
        import torch

        two = {name: torch.cat([values[:1], values[:2][-1:]]) for name, values in batch.items()}
        engine = cls(model, loss, parameters, _candidates(model, parameters))
        sums = Sums(scratch, torch.zeros(2, dtype=torch.float64, device=two["labels"].device))
        alone = loss(model, rows_of(two, 0)).detach()
        refused: set[str] = set()
        with _sparse(engine.tapped), _taps(engine.tapped, 2, sums, refused) as seen:
            losses = loss(model, two)
            if losses.shape != (2,):
                raise ValueError(f"expected a loss per sample, shape [2], got {list(losses.shape)}")
            _check_apart(model, two, losses.detach(), alone, loss)
            losses[0].backward()  # type: ignore[no-untyped-call]
        norms = {name: 0.0 if p.grad is None else float(_dense(p.grad)[1].norm()) for name, p in parameters.items()}
        largest = max(norms.values(), default=0.0)

        def agrees(name: str, p: "Parameter") -> bool:
            if p.grad is None:
                return True
            # Far below the model's largest gradient there is nothing but rounding, which two ways do differently.
            bound = _tolerance(p.dtype) * norms[name] + 8 * torch.finfo(p.dtype).eps * largest
            rows, gradient = _dense(p.grad)
            difference = scratch[name][rows].sqrt_().sub_(gradient.abs_())  # in place: neither is needed again
            return float(difference.norm()) <= bound

        engine.tapped = [
            tapped
            for tapped in engine.tapped
            if tapped.name in seen
            and tapped.name not in refused
            and all(agrees(name, parameters[name]) for name in tapped.names.values())
        ]
        by_tap = {name for tapped in engine.tapped for name in tapped.names.values()}
        for name, p in parameters.items():
            if name not in by_tap:
                (engine.idle if p.grad is None else engine.plain)[name] = p
            scratch[name][_dense(p.grad)[0] if p.grad is not None else ...] = 0
            p.grad = None
        return engine

    def add(self, batch: Batch, sums: dict[str, "Tensor"]) -> "Tensor":
        """Add a batch's squared gradients to ``sums``; the samples' squared norms."""
        import torch

        samples = len(batch["labels"])
        into = Sums(sums, torch.zeros(samples, dtype=torch.float64, device=batch["labels"].device))
        if self.tapped or self.idle:
            with _trainable(self.parameters, self.idle), _taps(self.tapped, samples, into):
                finite(self.loss(self.model, batch)).sum().backward()  # type: ignore[no-untyped-call]
        for name in [name for name, p in self.idle.items() if p.grad is not None]:
            self.plain[name] = self.idle.pop(name)
            self.plain[name].grad = None
        if self.plain:
            with _trainable(self.parameters, self.plain):
                add_one_by_one(self.model, self.plain, batch, self.loss, sums, into.norms)
        if not bool(torch.isfinite(into.norms).all()):
            # The last in the model is the first of the backward pass, nearest to the cause.
            bad = next(name for name in reversed(sums) if not bool(torch.isfinite(sums[name]).all()))
            raise DefenseKitError(f"the gradient of {bad} is NaN or infinite")
        return into.norms


def _candidates(model: "Module", parameters: Mapping[str, "Parameter"]) -> list[_Tapped]:
    """Every layer of a known kind that owns trainable parameters and shares none."""
    names = {id(p): name for name, p in parameters.items()}
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    found = []
    for where, module in model.named_modules():
        own = {local: names[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in names}
        if not own or any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
            continue
        if (layer := layer_for(module)) is not None:
            found.append(_Tapped(where, module, layer, own))
    return found


@contextmanager
def _sparse(tapped: list[_Tapped]) -> Iterator[None]:
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


def _dense(gradient: "Tensor") -> "tuple[Tensor | slice, Tensor]":
    """The rows that a gradient has, and its values there."""
    if not gradient.is_sparse:
        return slice(None), gradient
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def _tolerance(dtype: "torch.dtype") -> float:
    """How far two ways of computing squared gradients may be apart, relative to their norm."""
    import torch

    return max(1e-3, 16 * torch.finfo(dtype).eps)


@contextmanager
def _trainable(parameters: Mapping[str, "Parameter"], chosen: Mapping[str, "Parameter"]) -> Iterator[None]:
    """Only the chosen parameters require a gradient; all did before, and do afterwards."""
    try:
        for name, p in parameters.items():
            p.requires_grad_(name in chosen)
        yield
    finally:
        for p in parameters.values():
            p.requires_grad_(True)


@contextmanager
def _taps(tapped: list[_Tapped], samples: int, sums: Sums, refused: set[str] | None = None) -> Iterator[set[str]]:
    """Hooks that add the squares of every tapped layer during the backward pass; the names of those that it reached.

    A layer that can't be done by tap is put into ``refused``, or stops the run where that is None.
    """
    import torch
    from torch.nn import Embedding

    class Tap(torch.autograd.Function):
        """Hands its first argument on, and its gradient to a function together with ``x``, which is kept as autograd
        keeps what it needs: checkpointing and offloading apply to it too."""

        @staticmethod
        def forward(ctx: Any, output: "Tensor", x: "Tensor", anchor: "Tensor", seen: Any) -> "Tensor":
            ctx.save_for_backward(x)
            ctx.seen = seen
            ctx.mark_dirty(output)
            return output

        @staticmethod
        def backward(ctx: Any, g: "Tensor") -> tuple["Tensor", None, None, None]:
            ctx.seen(ctx.saved_tensors[0], g)
            return g, None, None, None

    reached: set[str] = set()
    anchor = torch.zeros((), requires_grad=True)  # so that there is a backward pass below layers that are frozen

    def refuse(what: _Tapped, why: str) -> None:
        if refused is None:
            raise DefenseKitError(f"{what.name} {why} for these samples, and not for the first ones")
        refused.add(what.name)

    def hook(what: _Tapped) -> "Callable[[Module, tuple[Any, ...], Any], Any]":
        def seen(x: "Tensor", g: "Tensor") -> None:
            if what.name in reached:
                refuse(what, "is used more than once")
                return
            reached.add(what.name)
            dtype = _dtype(g.dtype)
            with torch.no_grad():
                what.layer(what.module, what.names, x.to(dtype) if x.is_floating_point() else x, g.to(dtype), sums)

        def forward(module: "Module", inputs: tuple[Any, ...], output: Any) -> Any:
            if not torch.is_grad_enabled():
                return None  # the first of the two passes of a checkpointed layer
            if not inputs or not isinstance(inputs[0], torch.Tensor) or not isinstance(output, torch.Tensor):
                refuse(what, "is not called with a tensor for a tensor")
                return None
            x = inputs[0]
            if isinstance(module, Embedding) and len(output) == 1 < samples:
                output = output.expand(samples, *output.shape[1:]).clone()  # positions, the same for every sample
            elif len(x) != samples:
                refuse(what, "is given something that is not one entry per sample")
                return None
            return Tap.apply(output, x.detach(), anchor, seen)  # type: ignore[no-untyped-call]

        return forward

    handles = [what.module.register_forward_hook(hook(what)) for what in tapped]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def _check_apart(model: "Module", two: Batch, losses: "Tensor", alone: "Tensor", loss: Loss) -> None:
    """Raise DefenseKitError, naming the layer, where a sample's loss is another beside a second sample."""
    import torch

    def differ(a: "Tensor", b: "Tensor") -> bool:
        bound = _tolerance(next(model.parameters()).dtype)
        return bool((a - b).float().norm() > bound * b.float().norm() + 1e-6)

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
