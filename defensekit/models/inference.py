"""What a classifier makes of rows: logits, and what its head reads."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from defensekit.text import Row, batches, encode
from defensekit.training import Precision
from defensekit.utils.errors import DefenseKitError, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def predict(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    max_length: int,
    precision: Precision,
    batch_size: int = 64,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> "Tensor":
    """Logits of every row, (rows, labels), float32, in the order of the rows.

    Raises:
        DefenseKitError: a logit is NaN or infinite.
    """
    import torch

    logits = torch.zeros(len(rows), model.config.num_labels)

    def keep(indices: list[int], batch: "dict[str, Tensor]", answers: "Tensor") -> None:
        logits[indices] = answers

    _ask(model, tokenizer, rows, keep, max_length, precision, batch_size, report)
    return _finite(logits)


def features(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    max_length: int,
    precision: Precision,
    batch_size: int = 64,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> "tuple[Tensor, Tensor]":
    """As `predict`, and what the model's head reads of every row, (rows, width), float32.

    The head is the last linear layer. Where it reads every token of a row, that of the last one counts, as in models
    that read from left to right.

    Raises:
        UsageError: the model has no such head.
        DefenseKitError: a logit or feature is NaN or infinite.
    """
    import torch

    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    heads = [module for module in linear if module.out_features == model.config.num_labels]
    if not heads:
        raise UsageError("the classifier does not end in a linear layer: what it makes of a row is not known")
    read: list[Tensor] = []
    logits = torch.zeros(len(rows), model.config.num_labels)
    hidden = torch.zeros(len(rows), heads[-1].in_features)

    def keep(indices: list[int], batch: "dict[str, Tensor]", answers: "Tensor") -> None:
        inputs = read.pop()
        if inputs.dim() == 3:
            last = (torch.arange(inputs.shape[1], device=inputs.device) * batch["attention_mask"]).argmax(1)
            inputs = inputs[torch.arange(len(inputs), device=inputs.device), last]
        logits[indices], hidden[indices] = answers, inputs.float().cpu()

    hook = heads[-1].register_forward_pre_hook(lambda module, given: read.append(given[0]))
    try:
        _ask(model, tokenizer, rows, keep, max_length, precision, batch_size, report)
    finally:
        hook.remove()
    return _finite(logits), _finite(hidden)


def _ask(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    keep: "Callable[[list[int], dict[str, Tensor], Tensor], None]",
    max_length: int,
    precision: Precision,
    batch_size: int,
    report: Callable[[int, int], None],
) -> None:
    """Ask a model about rows, in eval mode; of each batch, ``keep`` gets the rows' indices, the inputs, the logits."""
    import torch

    device = next(model.parameters()).device
    training = model.training
    model.eval()
    done = 0
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            for indices, batch in batches(encode(tokenizer, rows, max_length, model), tokenizer, batch_size):
                inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
                keep(indices, inputs, model(**inputs).logits.float().cpu())
                done += len(indices)
                report(done, len(rows))
    finally:
        model.train(training)


def _finite(values: "Tensor") -> "Tensor":
    if not bool(values.isfinite().all()):
        raise DefenseKitError("the model answers with NaN or infinity")
    return values
