"""Causal language models: loss and perplexity."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from defensekit.text import Row, batches, encode
from defensekit.text.chat import IGNORED
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def token_losses(model: "torch.nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """The next-token cross-entropy summed over each row, (N,), in float32.

    Of instructions the response's tokens count, of texts all but the first, padding on either side left out.
    """
    losses, _, counted = each_token(model, batch)
    return (losses * counted).sum(dim=1)


def each_token(model: "torch.nn.Module", batch: "Mapping[str, Tensor]") -> "tuple[Tensor, Tensor, Tensor]":
    """Of every token after the first, (N, tokens - 1): its loss, whether it is the likeliest, whether it counts."""
    import torch

    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch.get("labels")
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    if labels is not None and labels.dim() == 2:
        counted = labels[:, 1:] != IGNORED
    else:
        counted = (mask[:, 1:] * mask[:, :-1]).bool()
    return losses, logits.argmax(dim=2) == ids[:, 1:], counted


def perplexity(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    max_length: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """The perplexity of texts: exp of the mean cross-entropy per token, as in `token_losses`.

    Raises:
        DefenseKitError: no text has two tokens, or the loss is NaN or infinite.
    """
    import torch

    total, tokens, done = 0.0, 0, 0
    with torch.inference_mode():
        for indices, batch in batches(encode(tokenizer, rows, max_length, model), tokenizer, 16):
            batch = {name: values.to(model.device) for name, values in batch.items()}
            losses, _, counted = each_token(model, batch)
            total += float((losses * counted).double().sum())
            tokens += int(counted.sum())
            done += len(indices)
            report(done, len(rows))
    if not tokens or not math.isfinite(total):
        raise DefenseKitError("the held-out texts have no two tokens" if not tokens else f"the loss is {total}")
    return math.exp(min(total / tokens, 700.0))
