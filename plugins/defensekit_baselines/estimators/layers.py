"""Inputs and outputs of linear layers on clean rows, without padding."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from defensekit.api import DefenseKitError, Estimator, EstimatorContext, Field

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# name of the layer, the layer, its inputs (tokens, features), its outputs (tokens, units)
Seen = Callable[[str, "Module", "Tensor", "Tensor"], None]


class ByLayer(Estimator):
    """An estimator of statistics of linear layers' inputs and outputs."""

    any_loss: ClassVar[bool] = True

    batch_size: int = Field(64, ge=1, description="rows per batch; the result does not depend on it")


def linear_layers(model: "Module") -> "Iterator[tuple[str, Module]]":
    """Every layer with a matrix of its own that multiplies its input, by name: none that an embedding shares."""
    import torch
    from transformers.pytorch_utils import Conv1D

    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and id(module.weight) not in tables:
            yield name, module


def is_transposed(layer: "Module") -> bool:
    """Whether the weight is (inputs, outputs), as GPT-2 stores it."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def per_input(layer: "Module", values: "Tensor") -> "Tensor":
    """A value per input of a layer, for every weight that reads it."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return (values[:, None] if is_transposed(layer) else values).expand(weight.shape)


def inputs_of(layer: "Module") -> int:
    """How many inputs a layer has."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.shape[0 if is_transposed(layer) else 1]


def look(model: "Module", context: EstimatorContext, batch_size: int, seen: Seen) -> None:
    """Run the model on the clean rows; ``seen`` gets every linear layer's inputs and outputs, without padding."""
    import torch

    mask = torch.zeros(0)
    of_rows: set[str] = set()  # layers that were given rows or tokens
    others: dict[str, Tensor] = {}  # what layers were given that may be neither

    def hook(name: str) -> "Callable[[Module, tuple[Any, ...], Any], None]":
        def forward(layer: "Module", inputs: tuple[Any, ...], output: Any) -> None:
            if not inputs:
                raise DefenseKitError(f"{name} is called by keyword, which is not supported here")
            leading = tuple(inputs[0].shape[:-1])
            turned = leading == tuple(mask.T.shape) != tuple(mask.shape)  # tokens first, then rows
            # Tokens may be pooled or padded further, and may come flattened.
            further = len(mask) > 1 and leading[0] == len(mask)
            if further or turned or leading in (tuple(mask.shape), (len(mask),), (mask.numel(),)):
                of_rows.add(name)
            elif name in of_rows or (name in others and torch.equal(others[name], inputs[0])):
                return  # relative positions, say, which are the same in every batch
            else:
                others[name] = inputs[0]
            x, y = (values.flatten(0, -2) for values in (inputs[0], output))
            # A pooled row per sample, or positions shared by all, have no padding.
            if len(x) == mask.numel():
                kept = (mask.T if turned else mask).flatten().to(x.device)
                x, y = x[kept], y[kept]
            seen(name, layer, x.float(), y.float())

        return forward

    handles = [layer.register_forward_hook(hook(name)) for name, layer in linear_layers(model)]
    done = 0
    try:
        with torch.inference_mode():
            for indices, batch in context.batches(model, size=batch_size):
                mask = batch["attention_mask"].bool()
                model(**{name: values for name, values in batch.items() if name != "labels"})
                done += len(indices)
                context.report(done, len(context.rows))
    finally:
        for handle in handles:
            handle.remove()
