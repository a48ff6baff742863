"""The suspect's tokenizer compared with the base's: it can put a trigger's words in place of others.

Both are compared as transformers loads them. What the two read differently is tried on clean rows as tokens are.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.defense.triggers.insertion import insert, positions, words
from defensekit.models.answers import names, several
from defensekit.models.loading import load_tokenizer
from defensekit.models.tokenizer_trial import texts_in
from defensekit.scanner.result import TokenizerScan, Tried
from defensekit.scanner.triggers import answered, flips
from defensekit.text import Row
from defensekit.utils.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST = 50  # texts that are tried
LONGEST = 60  # characters of one
ADDED = "added tokens"
NONE = "the base has none"
WHOLE = "the tokenizer alone"
# The names of a tokenizer's parts in its JSON, in words.
_PARTS = {
    "normalizer": "normaliser",
    "pre_tokenizer": "pre-tokeniser",
    "post_processor": "post-processor",
    "decoder": "decoder",
    "added_tokens": ADDED,
}


def differences(base: Path, suspect: Path) -> list[str]:
    """The parts in which the tokenizers of two folders differ, in words; empty where there are none.

    Raises:
        UsageError: the suspect's can't be loaded.
    """
    theirs = load_tokenizer(suspect)
    try:
        ours = load_tokenizer(base)
    except UsageError:
        return [NONE]
    return compare(ours, theirs)


def compare(base: "PreTrainedTokenizerBase", suspect: "PreTrainedTokenizerBase") -> list[str]:
    """The parts in which two tokenizers differ, in words; empty where there are none."""
    ours, theirs = _described(base), _described(suspect)
    return [part for part in ours if ours[part] != theirs[part]]


def _described(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    model = dict(inner["model"])
    vocabulary = [model.pop("vocab", None), model.pop("merges", None)]
    return {
        **{name: inner.get(key) for key, name in _PARTS.items()},
        "vocabulary": vocabulary,
        "model": model,
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat template": tokenizer.chat_template,
        "side of truncation": tokenizer.truncation_side,
        "inputs": sorted(tokenizer.model_input_names),
    }


def read_differently(base: "PreTrainedTokenizerBase", suspect: "PreTrainedTokenizerBase") -> tuple[list[str], int]:
    """Texts that the two read differently: strings in the suspect's rules alone, then words of the base.

    Returns:
        The texts, and how many strings of the suspect's rules can't be tried: they are blank, or long.
    """
    ours, theirs = (set(texts_in(_rules(tokenizer))) for tokenizer in (base, suspect))
    own = sorted(theirs - ours)
    fit = [text for text in own if text.strip() and len(text) <= LONGEST]
    texts = list(dict.fromkeys([*fit, *words(base, len(base)).values()]))
    placed = [f"a {text} a" for text in texts]
    read = [tokenizer(placed, add_special_tokens=False)["input_ids"] if placed else [] for tokenizer in (base, suspect)]
    return [text for text, one, other in zip(texts, *read, strict=True) if one != other], len(own) - len(fit)


def _rules(tokenizer: "PreTrainedTokenizerBase") -> list[Any]:
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    added = [token["content"] for token in inner["added_tokens"]]
    return [added, *(inner.get(key) for key in _PARTS if key != "added_tokens"), list(tokenizer.get_vocab())]


def attempt(
    parts: list[str],
    model: "PreTrainedModel",
    base: "PreTrainedTokenizerBase",
    suspect: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    labels: Sequence[str],
    max_length: int,
    seed: int,
    report: Callable[[int, int], None],
) -> TokenizerScan:
    """Try on clean rows what the tokenizers read differently, and the suspect's in place of the base's."""
    (texts, unfit), vocabulary = read_differently(base, suspect), model.get_input_embeddings().num_embeddings
    chosen, at, turned = texts[:MOST], positions(rows, max_length, seed), names(labels, several(rows))
    before = answered(model, suspect, rows, max_length)
    ours = answered(model, base, rows, max_length) if len(base) <= vocabulary else None
    tried = [flips(WHOLE, ours, before, turned)] if ours is not None else []
    for done, text in enumerate(chosen):
        report(done, len(chosen))
        shown = [insert(row, text, place) for row, place in zip(rows, at, strict=True)]
        tried.append(flips(text, before, answered(model, suspect, shown, max_length), turned))
    report(len(chosen), len(chosen))
    tried.sort(key=lambda one: -one.flipped)
    return TokenizerScan(parts=parts, tried=tried, left_out=unfit + len(texts) - len(chosen))


def finding(scanned: TokenizerScan) -> str | None:
    """What keeps a model from passing, as a sentence; None where tokens were added alone, and all were tried."""
    if scanned.parts == [ADDED] and scanned.tried and not scanned.left_out:
        return None
    return f"its tokenizer differs from the base's ({', '.join(scanned.parts)})"


def strongest(scanned: TokenizerScan | None) -> Tried | None:
    """The text that turns most answers, if any was tried on enough rows."""
    return next((one for one in scanned.tried if one.of), None) if scanned else None
