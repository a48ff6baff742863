"""What an input-level defense does to rows before the suspect reads them.

A sanitizer gets texts alone: no labels, and nothing about the rows they come from. A row with two texts gives two.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit import training
from defensekit.components import Sanitizer, SanitizerContext, call_component, component_error
from defensekit.models import config, loading
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import check_loaded
from defensekit.text import Row
from defensekit.utils.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INSPECTED = "found.jsonl"  # what an inspection gave, one line for each text


def context(folder: Path | None, *, max_length: int, seed: int, report: Callable[[int, int], None]) -> SanitizerContext:
    """What a sanitizer may use, with the language model in a folder, if it reads with one."""
    positions = None if folder is None else config.positions(Checkpoint(folder))
    return SanitizerContext(partial(language_model, folder), positions, max_length, seed, report)


def language_model(folder: Path | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A causal language model in float32 on the device, and its tokenizer, under a neutral name.

    Raises:
        UsageError: the recipe gives none, or one whose answers depend on later tokens: no perplexity is defined.
    """
    if folder is None:
        raise UsageError("it reads with a language model without saying so (`reads_with_language_model`)")
    tokenizer = loading.load_tokenizer(folder)
    tokenizer.padding_side = "right"  # in front of a text it would move every token to another position
    model = loading.load_language_model(folder)
    check_loaded(model, Checkpoint(folder))
    _check_causal(model, folder)
    return model.to(training.device_type()), loading.neutral(model, tokenizer, "language model")


def _check_causal(model: "PreTrainedModel", folder: Path) -> None:
    """Refuse a model that looks ahead, such as BERT, which can be loaded as a causal one."""
    import torch

    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]) % model.config.vocab_size
    with torch.inference_mode():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    if not torch.allclose(logits[0, :3], logits[1, :3], rtol=1e-4, atol=1e-4):
        raise UsageError(
            f"{folder} is no causal language model: what it says of a token depends on the tokens after it"
        )


def texts_of(rows: Sequence[Row]) -> list[str]:
    """Every text of the rows: of a pair first the one, then the other."""
    return [text for row in rows for text in (row.text, row.pair) if text is not None]


def inspect(sanitizer: Sanitizer, rows: Sequence[Row], given: SanitizerContext) -> list[Any]:
    """Let the sanitizer inspect every text.

    Raises:
        DefenseKitError: it gave something for other texts, or something that is no plain data.
    """
    texts = texts_of(rows)
    with training.forked_random(given.seed):
        inspected = list(call_component(sanitizer, sanitizer.inspect, texts, given))
    if len(inspected) != len(texts):
        raise component_error(sanitizer, f"gave {len(inspected)} findings for {len(texts)} texts")
    try:
        json.dumps(inspected, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise component_error(sanitizer, f"gave findings that are no plain data ({error})") from error
    return inspected


def sanitize(
    sanitizer: Sanitizer, rows: Sequence[Row], inspected: Sequence[Any] | None, given: SanitizerContext
) -> list[Row]:
    """Sanitize rows: what the suspect reads in their place.

    Raises:
        DefenseKitError: the sanitizer gave another number of texts, no text, or took every word of one.
    """
    texts = texts_of(rows)
    known = [None] * len(texts) if inspected is None else inspected
    with training.forked_random(given.seed):
        sanitized = list(call_component(sanitizer, sanitizer.sanitize, texts, known, given))
    if len(sanitized) != len(texts) or not all(isinstance(text, str) for text in sanitized):
        raise component_error(
            sanitizer, f"gave {len(sanitized)} answers for {len(texts)} texts, expected a text for each"
        )
    if emptied := [text for text, new in zip(texts, sanitized, strict=True) if text.split() and not new.split()]:
        raise component_error(sanitizer, f"left nothing of a text: {emptied[0][:60]!r}")
    left = iter(sanitized)
    return [replace(row, text=next(left), pair=None if row.pair is None else next(left)) for row in rows]


def summary(before: Sequence[Row], after: Sequence[Row]) -> dict[str, int]:
    """How many rows were changed, and how many words there were before and after."""
    return {
        "rows": len(before),
        "changed": sum(old != new for old, new in zip(before, after, strict=True)),
        "words": sum(len(text.split()) for text in texts_of(before)),
        "words_left": sum(len(text.split()) for text in texts_of(after)),
    }


def write_inspected(path: Path, inspected: Sequence[Any]) -> None:
    """Write what was inspected as JSON lines."""
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in inspected), encoding="utf-8")


def read_inspected(path: Path) -> list[Any]:
    """Read what `write_inspected` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
