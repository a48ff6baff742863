"""What a classifier makes of rows: logits, and what its head reads."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from defensekit.text import Row, batches, encode
from defensekit.training import Precision
from defensekit.utils.errors import DefenseKitError, UsageError, running

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

    def keep(indices: list[int], mask: "Tensor", output: Any) -> None:
        logits[indices] = output.logits.float().cpu()

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
) -> "tuple[Tensor, Tensor, Tensor]":
    """As `predict`, what the head reads of every row, and the last layer's state of a token: (rows, width), float32.

    The head is the last linear layer. Where it reads every token of a row, as in models that read from left to right,
    that of the last token counts, which is also the state. Else the state is the first token's, before it is pooled;
    where a model does not give its layers' states it is what the head reads.

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
    logits, width = torch.zeros(len(rows), model.config.num_labels), heads[-1].in_features
    pooled, hidden = torch.zeros(len(rows), width), torch.zeros(len(rows), width)

    def keep(indices: list[int], mask: "Tensor", output: Any) -> None:
        inputs, places = read.pop(), torch.arange(mask.shape[1], device=mask.device) * mask
        every = torch.arange(len(mask), device=mask.device)
        if inputs.dim() == 3:
            inputs = states = inputs[every, places.argmax(1)]
        elif layers := output.get("hidden_states"):
            states = layers[-1][every, mask.argmax(1)]
        else:
            states = inputs
        logits[indices] = output.logits.float().cpu()
        pooled[indices], hidden[indices] = inputs.float().cpu(), states.float().cpu()

    hook = heads[-1].register_forward_pre_hook(lambda module, given: read.append(given[0]))
    try:
        _ask(model, tokenizer, rows, keep, max_length, precision, batch_size, report, output_hidden_states=True)
    finally:
        hook.remove()
    return _finite(logits), _finite(pooled), _finite(hidden)


def _ask(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    keep: "Callable[[list[int], Tensor, Any], None]",
    max_length: int,
    precision: Precision,
    batch_size: int,
    report: Callable[[int, int], None],
    **options: bool,
) -> None:
    """Ask a model about rows, in eval mode; of each batch, ``keep`` gets the rows' indices, the mask, the output."""
    import torch

    device = next(model.parameters()).device
    training = model.training
    model.eval()
    done = 0
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            for indices, batch in batches(encode(tokenizer, rows, max_length, model), tokenizer, batch_size):
                inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
                with running("the model"):
                    output = model(**inputs, **options)
                keep(indices, inputs["attention_mask"], output)
                done += len(indices)
                report(done, len(rows))
    finally:
        model.train(training)


def _finite(values: "Tensor") -> "Tensor":
    if not bool(values.isfinite().all()):
        raise DefenseKitError("the model answers with NaN or infinity")
    return values
