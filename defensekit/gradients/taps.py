"""Hooks on layers that compute squared gradients during the backward pass, from inputs and output gradients."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from defensekit.gradients.layers import Layer, Sums, input_gradient, layer_for
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter


@dataclass(frozen=True)
class Tapped:
    """A layer that gets a hook: its name, and its trainable parameters' full names by their local names."""

    name: str
    module: "Module"
    layer: Layer
    names: dict[str, str]


def candidates(model: "Module", parameters: "Mapping[str, Parameter]") -> list[Tapped]:
    """Every layer of a known kind with trainable parameters, none of them shared."""
    names = {id(p): name for name, p in parameters.items()}
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    tapped = []
    for name, module in model.named_modules():
        own = {local: names[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in names}
        if not own or any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
            continue
        if (layer := layer_for(module)) is not None:
            tapped.append(Tapped(name, module, layer, own))
    return tapped


@contextmanager
def taps(tapped: list[Tapped], samples: int, sums: Sums, refused: set[str], trial: bool = False) -> Iterator[set[str]]:
    """Install hooks that add the squares of every tapped layer during the backward pass.

    A layer that turns out to be unsuitable is added to ``refused`` and its squares are not added. In a trial this also
    applies to a layer whose formula fails.

    Yields:
        The names of the layers that the backward pass reached.

    Raises:
        DefenseKitError: outside a trial, in the backward pass: a layer is used again that was used once in the trial.
    """
    import torch
    from torch.nn import Embedding

    class Tap(torch.autograd.Function):
        """The identity of its first argument; the backward pass calls ``seen`` with ``x`` and the gradient.

        ``x`` is saved by autograd, so checkpointing and offloading apply to it. With ``back``, which computes the
        gradient of ``x`` from that gradient, the first argument is detached and ``x`` is not.
        """

        @staticmethod
        def forward(ctx: Any, output: "Tensor", x: "Tensor", anchor: "Tensor", seen: Any, back: Any) -> "Tensor":
            ctx.save_for_backward(x)
            ctx.seen, ctx.back = seen, back
            ctx.mark_dirty(output)
            return output

        @staticmethod
        def backward(ctx: Any, g: "Tensor") -> tuple["Tensor | None", ...]:
            g = g.contiguous()  # once, for all that read it
            ctx.seen(ctx.saved_tensors[0], g)
            return g, ctx.back(g) if ctx.back else None, None, None, None

    reached: set[str] = set()
    anchor = torch.zeros((), requires_grad=True)  # makes the backward pass reach layers below frozen ones

    def hook(what: Tapped) -> "Callable[[Module, tuple[Any, ...], Any], Any]":
        def seen(x: "Tensor", g: "Tensor") -> None:
            if what.name in refused:
                return  # by another of its calls: it takes a pass per sample, which has all of them
            if what.name in reached:
                if not trial:
                    raise DefenseKitError(f"{what.name} is used more than once for these samples, not for the first")
                refused.add(what.name)
                return
            reached.add(what.name)
            dtype = torch.promote_types(g.dtype, torch.float32)
            # For a model distributed over devices, norms and input may be on another device than this layer.
            own = Sums(sums.squares, sums.norms.new_zeros(samples, device=g.device))
            try:
                with torch.no_grad():
                    x = x.to(g.device, dtype if x.is_floating_point() else None)
                    what.layer(what.module, what.names, x, g.to(dtype), own)
                    sums.norms.add_(own.norms.to(sums.norms.device))
            except Exception:
                if not trial:
                    raise
                refused.add(what.name)  # an unusual layer: it takes a pass per sample

        def forward(module: "Module", inputs: tuple[Any, ...], output: Any) -> Any:
            if not torch.is_grad_enabled():
                return None  # the first of the two passes of a checkpointed layer
            x = inputs[0] if inputs else None
            if not isinstance(x, torch.Tensor) or not isinstance(output, torch.Tensor) or not _may_be_marked(output):
                refused.add(what.name)
                return None
            if isinstance(module, Embedding) and len(output) == 1 < samples:
                output = output.expand(samples, *output.shape[1:]).clone()  # positions, the same for every sample
            elif x.dim() == 0 or len(x) != samples or output.shape[:1] != x.shape[:1]:
                refused.add(what.name)
                return None
            back = input_gradient(module) if x.requires_grad and not trial else None
            if back is None:
                x = x.detach()
            else:
                output = output.detach()
            return Tap.apply(output, x, anchor, seen, back)  # type: ignore[no-untyped-call]

        return forward

    # Before other hooks, which may change the output.
    handles = [what.module.register_forward_hook(hook(what), prepend=True) for what in tapped]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def _may_be_marked(output: "Tensor") -> bool:
    """Whether autograd allows to mark an output as changed in place.

    It does not if the output's operation saved it for its own gradient, or if the output is a weight.
    """
    if hasattr(output.grad_fn, "_saved_result"):
        return False
    origin = output._base if output._is_view() and output._base is not None else output
    return not (origin.is_leaf and origin.requires_grad)
