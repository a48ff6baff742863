"""How often every token of a vocabulary occurs: in given rows, or in a language at large."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from defensekit.text import Row, encode
from defensekit.utils.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

# Share of a word's occurrences that is written with a capital letter: a guess, for vocabularies that distinguish cases.
_CAPITAL = 0.1


def in_rows(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], max_length: int, vocabulary: int
) -> "NDArray[Any]":
    """Count every token in rows: (vocabulary,)."""
    import numpy as np

    ids = [row["input_ids"] for row in encode(tokenizer, rows, max_length)]
    flat = np.concatenate([np.asarray(row_ids, dtype=int) for row_ids in ids])
    return np.bincount(flat[flat < vocabulary], minlength=vocabulary).astype(float)


def in_english(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> "NDArray[Any]":
    """Occurrences of every token among a million words of English, (vocabulary,), by the `wordfreq` package.

    Its words (those more frequent than one in a million) are tokenised, so that pieces of words count wherever they
    occur; as in running text, with a blank before them. It does not cover numbers and punctuation: see `spelled`.

    Raises:
        UsageError: `wordfreq` is not installed.
    """
    import numpy as np

    try:
        from wordfreq import get_frequency_dict
    except ImportError as error:
        raise UsageError(
            "without clean rows, the frequency of tokens comes from the package wordfreq, which is not installed: "
            "pip install 'defensekit[scan]', or give --clean"
        ) from error
    words = get_frequency_dict("en", wordlist="small")
    occurrences = np.zeros(vocabulary)
    for share, texts in (
        (1 - _CAPITAL, [f" {word}" for word in words]),
        (_CAPITAL, [f" {word.capitalize()}" for word in words]),
    ):
        encoded = _ids(tokenizer, texts)
        each = np.repeat(share * 1e6 * np.array([*words.values()]), [len(ids) for ids in encoded])
        flat = np.concatenate([np.asarray(ids, dtype=int) for ids in encoded])
        occurrences += np.bincount(flat[flat < vocabulary], each[flat < vocabulary], minlength=vocabulary)
    return occurrences


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> Sequence[Sequence[int]]:
    """The tokens of texts, whole and without special ones."""
    if not tokenizer.is_fast:
        encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return encoded
    # A third of the time that transformers takes, which makes lists of all that is not asked for here.
    inner = tokenizer.backend_tokenizer
    inner.no_padding()
    inner.no_truncation()
    return [encoding.ids for encoding in inner.encode_batch_fast(texts, add_special_tokens=False)]


def spelled(text: str) -> bool:
    """Whether frequencies of words cover a token: it has a letter or a character beyond ASCII."""
    return any(sign.isalpha() or not sign.isascii() for sign in text)
