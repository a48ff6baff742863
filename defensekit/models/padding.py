"""Answers that do not depend on padding, or batches without any.

A classifier may answer a padded row otherwise than the row alone: it pools at the last token that is not the padding
token, which a text may end in; its positions move with padding in front; it convolves over padding. So a few rows of
different lengths are tried, padded and one by one. Where no side of padding gives the same, the tokenizer loses its
padding token, and `defensekit.text.batches` makes batches of one length.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from defensekit.gradients.plain import cross_entropy, undisturbed
from defensekit.utils.errors import lacks_memory, running

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_TOKEN = -1  # the padding id of a model that has none and gets no padding; with None it refuses more than one row
_WORDS, _LONGEST = (1, 3, 8), 16  # words of the rows that are tried; tokens at which they are cut
_TOLERANCE, _APART = 1e-4, 1e-3  # of answers, and of gradients, relative to their norm


def settle_padding(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make a classifier's answers to batches those to its rows one by one, as the model's own config has them.

    Sets the tokenizer's padding side and the config's padding id; where neither side will do, the tokenizer has no
    padding token afterwards.
    """
    import torch

    own, token = model.config.pad_token_id, tokenizer.pad_token_id
    rows = _rows(model, tokenizer)
    with torch.inference_mode():
        try:
            with running("the model"):
                alone = torch.cat([_answers(model, tokenizer, [row]) for row in rows])
        except Exception as error:  # nothing is known of its padding: it gets none, and its own rows tell the error
            if lacks_memory(error):
                raise
            alone = None
        first = tokenizer.padding_side
        for side in (first, "left" if first == "right" else "right"):
            tokenizer.padding_side, model.config.pad_token_id = side, token
            if alone is not None and _agree(model, tokenizer, rows, alone):
                return
    tokenizer.padding_side, tokenizer.pad_token = first, None
    model.config.pad_token_id = NO_TOKEN if own is None else own


def settle_gradients(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", encoded: Sequence[dict[str, Any]]
) -> None:
    """Take the padding token away where the gradient of the shortest row changes when it is padded beside the longest.

    Answers may agree where gradients do not.

    Args:
        model: a classifier.
        tokenizer: its tokenizer, as `settle_padding` left it.
        encoded: rows, as `defensekit.text.encode` returns them.
    """
    import torch

    order = sorted(encoded, key=lambda row: len(row["input_ids"]))
    ends = [*order[:1], *order[-1:]]
    if tokenizer.pad_token is None or len({len(row["input_ids"]) for row in ends}) < 2:
        return
    with undisturbed(model) as parameters:
        weights = list(parameters.values())
        gradients = []
        for rows in (ends, ends[:1]):
            batch = tokenizer.pad(rows, padding=True, return_tensors="pt").to(model.device)
            gradients.append(torch.autograd.grad(cross_entropy(model, batch)[0], weights, materialize_grads=True))
    pairs = list(zip(*gradients, strict=True))
    apart = sum(float((padded - alone).square().sum()) for padded, alone in pairs)
    if apart > _APART**2 * sum(float(alone.square().sum()) for _, alone in pairs) + 1e-12:
        tokenizer.pad_token = None


@contextmanager
def without_placeholder(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block, the config of a model that has no padding id says so: for writing it."""
    own = model.config.pad_token_id
    model.config.pad_token_id = None if own == NO_TOKEN else own
    try:
        yield
    finally:
        model.config.pad_token_id = own


def note(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """A sentence for the user where `settle_padding` took the padding token away."""
    if tokenizer.pad_token is not None:
        return None
    return "the model's answers depend on padding: rows are read in batches of one length, without any"


def _rows(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    """Rows of several lengths, and one that ends in the padding token, which may be the end of every text."""
    known = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    drawn = range(0, known, max(known // 64, 1))
    words = [tokenizer.decode([token]).strip() for token in drawn if token not in tokenizer.all_special_ids]
    words = [word for word in words if word.isalnum()] or ["a"]
    texts = [" ".join((words * count)[:count]) for count in _WORDS]
    texts.append(texts[1] + tokenizer.pad_token)
    encoded = tokenizer(texts, truncation=True, max_length=_LONGEST)
    return [{name: encoded[name][i] for name in encoded} for i in range(len(texts))]


def _answers(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: list[dict[str, Any]]) -> "Tensor":
    logits: Tensor = model(**tokenizer.pad(rows, padding=len(rows) > 1, return_tensors="pt").to(model.device)).logits
    return logits.float()


def _agree(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: list[dict[str, Any]], alone: "Tensor"
) -> bool:
    try:
        padded = _answers(model, tokenizer, rows)
    except ValueError:  # as of a model that counts the ends of its texts
        return False
    return float((padded - alone).norm()) <= _TOLERANCE * float(alone.norm()) + 1e-6
