"""Squared per-sample gradients of single layers, from a layer's input and the gradient of its output.

Every function adds, for each of the layer's trainable parameters, sum_n G_n^2 to ``squares`` and the sum of G_n^2 to
``norms[n]``, where G_n is the gradient of sample n's loss. Inputs and output gradients are (samples, ..., features).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from defensekit.gradients.products import add_squared_products, add_squared_sums, used_rows

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


@dataclass(frozen=True)
class Sums:
    """The running sums: ``squares`` by the parameters' full names, and ``norms``, (samples,), in float64."""

    squares: "Mapping[str, Tensor]"
    norms: "Tensor"


# module, its trainable parameters' full names by their own, input, output gradient
Layer = Callable[["Module", Mapping[str, str], "Tensor", "Tensor", Sums], None]


def layer_for(module: "Module") -> Layer | None:
    """The function for a module's kind, if there is one; it is tested before it is used."""
    import torch
    from transformers.pytorch_utils import Conv1D

    shapes = {name: p.shape for name, p in module.named_parameters(recurse=False)}
    forward = type(module).forward
    if isinstance(module, torch.nn.Linear | Conv1D | torch.nn.Embedding):
        # A subclass with another forward may compute something else.
        if forward is torch.nn.Linear.forward:
            return linear
        if forward is Conv1D.forward:
            return conv1d
        table = cast(torch.nn.Embedding, module)
        if forward is not torch.nn.Embedding.forward or table.max_norm is not None:
            return None
        return None if table.scale_grad_by_freq or table.sparse else embedding
    if shapes.keys() <= {"weight", "bias"} and all(len(shape) == 1 for shape in shapes.values()):
        return scale
    return None


def linear(module: "Module", names: Mapping[str, str], x: "Tensor", g: "Tensor", sums: Sums) -> None:
    """Linear: y = x W^T + b, so G_n = sum_t g_nt^T x_nt."""
    _affine(names, x, g, sums, transposed=False)


def conv1d(module: "Module", names: Mapping[str, str], x: "Tensor", g: "Tensor", sums: Sums) -> None:
    """GPT-2's Conv1D: y = x W + b, a Linear layer with a transposed weight."""
    _affine(names, x, g, sums, transposed=True)


def _affine(names: Mapping[str, str], x: "Tensor", g: "Tensor", sums: Sums, transposed: bool) -> None:
    x, g = _rows(x).contiguous(), _rows(g).contiguous()
    if "weight" in names:
        left, right = (x, g) if transposed else (g, x)
        add_squared_products(left, right, used_rows(g), sums.squares[names["weight"]], sums.norms)
    if "bias" in names:
        add_squared_sums(g, None, sums.squares[names["bias"]], sums.norms)


def input_gradient(module: "Module") -> "Callable[[Tensor], Tensor] | None":
    """A function from the gradient of a Linear's or Conv1D's output, (samples, ..., features), to that of its input.

    It skips rows that are 0, which in the last layer are all but the pooled token's. None for other modules, and for a
    module whose forward was replaced.
    """
    if "forward" in vars(module) or (layer := layer_for(module)) not in (linear, conv1d):
        return None
    weight = cast("Tensor", module.weight).detach()
    if layer is conv1d:
        weight = weight.T

    def back(g: "Tensor") -> "Tensor":
        w = weight.to(g.dtype)
        used = used_rows(_rows(g)).flatten()
        if 2 * int(used.sum()) > len(used):
            return g @ w
        x = g.new_zeros(len(used), w.shape[1])
        x[used] = g.reshape(len(used), -1)[used] @ w
        return x.view(*g.shape[:-1], -1)

    return back


def embedding(module: "Module", names: Mapping[str, str], x: "Tensor", g: "Tensor", sums: Sums) -> None:
    """Embedding: gradients are summed by (sample, row), then squared, without a tensor of samples x rows x features."""
    import torch

    table = cast(torch.nn.Embedding, module)
    rows = table.num_embeddings
    g = _rows(g)
    ids = x.flatten(1).expand(g.shape[:2])
    keys = (torch.arange(len(g), device=g.device)[:, None] * rows + ids).flatten()
    g = g.flatten(0, 1)
    if table.padding_idx is not None:
        moved = ids.flatten() != table.padding_idx % rows
        keys, g = keys[moved], g[moved]
    unique, inverse = torch.unique(keys, return_inverse=True)
    squared = g.new_zeros(len(unique), g.shape[1]).index_add_(0, inverse, g).square_()
    sums.squares[names["weight"]].index_add_(0, unique % rows, squared)
    sums.norms.index_add_(0, unique // rows, squared.double().sum(1))


def scale(module: "Module", names: Mapping[str, str], x: "Tensor", g: "Tensor", sums: Sums) -> None:
    """Elementwise y = w * f(x) + b: LayerNorm, RMSNorm and other layers that are linear in their own vector."""
    import torch

    if "weight" in names:
        if type(module).forward is torch.nn.LayerNorm.forward:
            norm = cast(torch.nn.LayerNorm, module)
            f = torch.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        else:
            own = {name: p.detach().to(x.dtype) for name, p in module.named_parameters(recurse=False)}
            at = [
                torch.func.functional_call(module, own | {"weight": torch.full_like(own["weight"], value)}, (x,))
                for value in (1.0, 0.0)
            ]
            f = at[0] - at[1]
        add_squared_sums(_rows(g), _rows(f), sums.squares[names["weight"]], sums.norms)
    if "bias" in names:
        add_squared_sums(_rows(g), None, sums.squares[names["bias"]], sums.norms)


def _rows(values: "Tensor") -> "Tensor":
    """Reshape to (samples, tokens, features), with all dimensions between flattened to tokens."""
    return values[:, None] if values.dim() == 2 else values.flatten(1, -2)
