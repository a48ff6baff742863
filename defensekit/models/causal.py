"""Causal language models: loss and perplexity."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from defensekit.text import Row, batches, encode
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def token_losses(model: "torch.nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """The next-token cross-entropy summed over each row, (N,), in float32.

    Padding on either side does not count, nor does the first token.
    """
    import torch

    ids, mask = batch["input_ids"], batch["attention_mask"]
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * (mask[:, 1:] * mask[:, :-1])).sum(dim=1)


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
            total += float(token_losses(model, batch).double().sum())
            tokens += int((batch["attention_mask"].sum(dim=1) - 1).clamp(min=0).sum())
            done += len(indices)
            report(done, len(rows))
    if not tokens or not math.isfinite(total):
        raise DefenseKitError("the held-out texts have no two tokens" if not tokens else f"the loss is {total}")
    return math.exp(min(total / tokens, 700.0))
