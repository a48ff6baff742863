"""Predictions of a classifier: logits per row."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from defensekit.text import Row, batches, encode
from defensekit.training import Precision
from defensekit.utils.errors import DefenseKitError

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
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    done = 0
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            for indices, batch in batches(encode(tokenizer, rows, max_length, model), tokenizer, batch_size):
                del batch["labels"]
                logits[indices] = model(**{k: v.to(device) for k, v in batch.items()}).logits.float().cpu()
                done += len(indices)
                report(done, len(rows))
    finally:
        model.train(training)
    if not bool(torch.isfinite(logits).all()):
        raise DefenseKitError("the model answers with NaN or infinity")
    return logits
