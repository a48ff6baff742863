"""ONION: words without which a text is more fluent are removed before the suspect reads it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from defensekit.api import DefenseKitError, DetectorContext, Field, Sanitizer, SanitizerContext
from defensekit.text import batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens in a batch. The logits of a model like GPT-2 take 200 kB per token.
TOKENS = 1024
# Texts processed at a time; all their variants are in memory.
TEXTS = 64


class Onion(Sanitizer):
    """Removes words whose suspicion f_i = p_0 - p_i is above a threshold.

    p_0 is the perplexity of the text under a causal language model, p_i that of the text without its i-th word.

    ONION (Qi et al., EMNLP 2021, arXiv 2011.10369, https://github.com/thunlp/ONION). That code reads with GPT-2 large,
    splits at blanks, and prints clean accuracy and attack success for every threshold from 1 to 100; which is taken is
    left to the reader. That the paper takes it by a bound on the loss of clean accuracy is as we recall it.
    OpenBackdoor reads with GPT-2 (small), removes where f_i >= 0 by default, and counts padding in the
    perplexity.

    Ours: words are separated by blanks. Perplexity is exp of the mean negative log likelihood of the tokens
    after the first, without padding; where fewer than two tokens are left there is none, and the word is kept. Words
    that lie behind what the language model can read, or behind as many of its tokens as the suspect reads, are kept
    unread. Where every word is suspicious the least suspicious one is kept. A text in which nothing is removed is left
    as it is, in another words are joined by one blank.

    A text of n words costs n + 1 passes over it: of 20 words, as much as 500 tokens.
    """

    reads_with_language_model: ClassVar[bool] = True
    late: ClassVar[frozenset[str]] = frozenset({"threshold"})
    lower_does_more: ClassVar[frozenset[str]] = frozenset({"threshold"})

    threshold: float = Field(
        0.0,
        ge=0,
        description="words with a suspicion above this are removed, in units of perplexity; depends on the model",
    )

    def inspect(self, texts: Sequence[str], context: SanitizerContext) -> list[list[float | None]]:
        return suspicions(texts, context)

    def sanitize(self, texts: Sequence[str], findings: Sequence[Any], context: SanitizerContext) -> list[str]:
        return [self._without(text, suspicions) for text, suspicions in zip(texts, findings, strict=True)]

    def _without(self, text: str, suspicions: Sequence[float | None]) -> str:
        words = text.split()
        out = {i for i, suspicion in enumerate(suspicions) if suspicion is not None and suspicion > self.threshold}
        if len(out) == len(words):
            out -= {min(out, key=lambda i: suspicions[i] or 0.0)} if out else set()
        return " ".join(word for i, word in enumerate(words) if i not in out) if out else text


def suspicions(texts: Sequence[str], context: SanitizerContext | DetectorContext) -> list[list[float | None]]:
    """The suspicion of every word of the texts that is read, None where it has none."""
    model, tokenizer = context.language_model()
    limit = min(context.max_length, context.positions or context.max_length)
    found: list[list[float | None]] = []
    for start in range(0, len(texts), TEXTS):
        chunk = [_read(text.split(), tokenizer, limit) for text in texts[start : start + TEXTS]]
        variants = [variant for words in chunk for variant in _variants(words)]
        known = iter(perplexities(variants, model, tokenizer, limit))
        for words in chunk:
            whole, *without = [next(known) for _ in _variants(words)] or [None]
            found.append([None if whole is None or one is None else whole - one for one in without])
        context.report(min(start + TEXTS, len(texts)), len(texts))
    return found


def _variants(words: Sequence[str]) -> list[str]:
    """The text, and it without each of its words; nothing, where there is nothing to leave out."""
    if len(words) < 2:
        return []
    return [" ".join(words), *(" ".join([*words[:i], *words[i + 1 :]]) for i in range(len(words)))]


def _read(words: list[str], tokenizer: "PreTrainedTokenizerBase", limit: int) -> list[str]:
    """The words within the first ``limit`` tokens."""
    text = " ".join(words)
    [encoding] = tokenizer([text], truncation=True, max_length=limit).encodings
    if not encoding.overflowing:
        return words
    offsets = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    end = max((end for (_, end), special in offsets if not special), default=0)
    cut = end > 0 and " " not in text[end - 1 : end + 1]
    return words[: len(text[:end].split()) - cut]


def perplexities(
    texts: Sequence[str], model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", limit: int
) -> list[float | None]:
    """The perplexity of every text, cut to ``limit`` tokens: exp of the mean negative log likelihood after the first.

    None for texts of fewer than two tokens.

    Raises:
        DefenseKitError: one is NaN or infinite.
    """
    import torch

    values: list[float | None] = [None] * len(texts)
    encoded = tokenizer(list(texts), truncation=True, max_length=limit) if texts else {"input_ids": []}
    scorable = [i for i, tokens in enumerate(encoded["input_ids"]) if len(tokens) > 1]
    rows = [{name: encoded[name][i] for name in ("input_ids", "attention_mask")} for i in scorable]
    with torch.inference_mode():
        for indices, batch in batches(rows, tokenizer, len(rows), TOKENS):
            tokens, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
            logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
            kept = mask[:, 1:]
            means = (losses * kept).double().sum(1) / kept.sum(1)
            for index, perplexity in zip(indices, means.exp().tolist(), strict=True):
                values[scorable[index]] = perplexity
    if any(one is not None and not one < float("inf") for one in values):
        raise DefenseKitError("the language model's perplexity of a text is NaN or infinite")
    return values
