"""Taps on layers: what goes in, and the gradient of what comes out, turned into squares during the backward pass."""

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
    """A layer that is done by tap: its name, and its trainable parameters' full names by their own."""

    name: str
    module: "Module"
    layer: Layer
    names: dict[str, str]


def candidates(model: "Module", parameters: "Mapping[str, Parameter]") -> list[Tapped]:
    """Every layer of a known kind that owns trainable parameters and shares none."""
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
    """Hooks that add the squares of every tapped layer during the backward pass; the names of those that it reached.

    A layer that is found unfit on the way is put into ``refused``; its squares are then not added. In a trial, that is
    also what becomes of one whose formula fails.

    Raises (in the backward pass, outside a trial):
        DefenseKitError: a layer that was used once in the trial is used again.
    """
    import torch
    from torch.nn import Embedding

    class Tap(torch.autograd.Function):
        """Hands its first argument on, and its gradient to ``seen`` together with ``x``, which is kept as autograd
        keeps what it needs: checkpointing and offloading apply to it too. With ``back``, which turns that gradient
        into the gradient of ``x``, the first argument comes detached from what made it, and ``x`` does not."""

        @staticmethod
        def forward(ctx: Any, output: "Tensor", x: "Tensor", anchor: "Tensor", seen: Any, back: Any) -> "Tensor":
            ctx.save_for_backward(x)
            ctx.seen, ctx.back = seen, back
            ctx.mark_dirty(output)
            return output

        @staticmethod
        def backward(ctx: Any, g: "Tensor") -> tuple["Tensor | None", ...]:
            g = g.contiguous()  # once, not by each who reads it
            ctx.seen(ctx.saved_tensors[0], g)
            return g, ctx.back(g) if ctx.back else None, None, None, None

    reached: set[str] = set()
    anchor = torch.zeros((), requires_grad=True)  # so that there is a backward pass below layers that are frozen

    def hook(what: Tapped) -> "Callable[[Module, tuple[Any, ...], Any], Any]":
        def seen(x: "Tensor", g: "Tensor") -> None:
            if what.name in reached:
                if not trial:
                    raise DefenseKitError(f"{what.name} is used more than once for these samples, not for the first")
                refused.add(what.name)
                return
            reached.add(what.name)
            dtype = torch.promote_types(g.dtype, torch.float32)
            # Of a model that is spread over devices, norms and input may be on another one than this layer.
            own = Sums(sums.squares, sums.norms.new_zeros(samples, device=g.device))
            try:
                with torch.no_grad():
                    x = x.to(g.device, dtype if x.is_floating_point() else None)
                    what.layer(what.module, what.names, x, g.to(dtype), own)
                    sums.norms.add_(own.norms.to(sums.norms.device))
            except Exception:
                if not trial:
                    raise
                refused.add(what.name)  # not what its kind usually is: the plain way does it

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

    # Before the hooks of others, which may change what comes out: what is tapped is the layer's own.
    handles = [what.module.register_forward_hook(hook(what), prepend=True) for what in tapped]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def _may_be_marked(output: "Tensor") -> bool:
    """Whether autograd lets an output be handed on as if changed in place: not if the operation that made it needs it
    for its own gradient, and not if it is a weight."""
    if hasattr(output.grad_fn, "_saved_result"):
        return False
    origin = output._base if output._is_view() and output._base is not None else output
    return not (origin.is_leaf and origin.requires_grad)
