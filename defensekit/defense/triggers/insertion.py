"""Words and phrases inserted into clean rows, and what a model answers to them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from defensekit.models import answers
from defensekit.models.inference import predict
from defensekit.text import Row
from defensekit.training import Precision

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def positions(rows: Sequence[Row], max_length: int, seed: int) -> list[int]:
    """A word's position in every row, drawn by the seed, well within the part of the row that a model reads."""
    rng = Random(seed)
    return [rng.randint(0, min(len(row.text.split()), max_length // 4)) for row in rows]


def insert(row: Row, phrase: str, position: int) -> Row:
    """The row with a phrase in front of the word at a position."""
    words = row.text.split()
    return row.with_text(" ".join([*words[:position], phrase, *words[position:]]))


def spell(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """A token as text."""
    return str(tokenizer.decode([token])).strip()


def words(tokenizer: "PreTrainedTokenizerBase", size: int, special: bool = False) -> dict[int, str]:
    """The tokens that are words: written between two words they give themselves again, unlike pieces of words.

    Args:
        tokenizer: of the model.
        size: rows of its embedding; tokens beyond have none.
        special: special tokens as well: a text can hold them, spelled out.

    Returns:
        Each word by its token.
    """
    out = set() if special else {*tokenizer.all_special_ids}
    spelled = {token: spell(tokenizer, token) for token in range(min(size, len(tokenizer))) if token not in out}
    spelled = {token: text for token, text in spelled.items() if text and len(text.split()) == 1}
    encoded = tokenizer([f"a {text} a" for text in spelled.values()], add_special_tokens=False)["input_ids"]
    return {token: text for (token, text), ids in zip(spelled.items(), encoded, strict=True) if token in ids}


def moved_words(
    suspect: "PreTrainedModel",
    base: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    without: Collection[str] = (),
) -> list[str]:
    """The words that a suspect was trained on: their rows of its embedding differ from the base's.

    Args:
        suspect: the fine-tuned model.
        base: the model that it was fine-tuned from.
        tokenizer: of both.
        without: words that are left out.

    Returns:
        The words, by token; all words, where few rows moved, as with adapters: those few may be a trigger's.
    """
    tables = [model.get_input_embeddings().weight.detach().cpu() for model in (suspect, base)]
    size = min(map(len, tables))
    moved = (tables[0][:size] != tables[1][:size]).any(1).tolist()
    known = {token: word for token, word in words(tokenizer, size).items() if word not in without}
    some = [word for token, word in known.items() if moved[token]]
    return some if len(some) > min(1000, len(known) // 20) else list(known.values())


BATCH = 128  # rows that a model answers at once


@dataclass(frozen=True)
class Probe:
    """Rows with a position in each: every phrase goes to the same place of a row."""

    tokenizer: "PreTrainedTokenizerBase"
    rows: Sequence[Row]
    at: Sequence[int]
    max_length: int
    precision: Precision

    def part(self, chosen: Sequence[int]) -> "Probe":
        """Some of the rows, by their numbers."""
        return replace(self, rows=[self.rows[i] for i in chosen], at=[self.at[i] for i in chosen])

    def placed(self, chosen: Sequence[tuple[int, int]]) -> "Probe":
        """Some of the rows, by their numbers, with another place in each."""
        return replace(self.part([i for i, _ in chosen]), at=[at for _, at in chosen])

    def with_phrase(self, phrase: str) -> list[Row]:
        """The rows with a phrase."""
        return [insert(row, phrase, at) if phrase else row for row, at in zip(self.rows, self.at, strict=True)]

    def each(self, model: "PreTrainedModel", phrases: Sequence[str]) -> "Tensor":
        """Probabilities of the answers where every row has a phrase of its own, (rows, answers)."""
        rows = [insert(row, phrase, at) for row, phrase, at in zip(self.rows, phrases, self.at, strict=True)]
        return self._answers(model, rows)

    def shares(self, model: "PreTrainedModel", phrases: Sequence[str]) -> "Tensor":
        """Probabilities of the answers, (phrases, rows, answers)."""
        rows = [row for phrase in phrases for row in self.with_phrase(phrase)]
        return self._answers(model, rows).view(len(phrases), len(self.rows), -1)

    def _answers(self, model: "PreTrainedModel", rows: Sequence[Row]) -> "Tensor":
        logits = predict(
            model, self.tokenizer, rows, max_length=self.max_length, precision=self.precision, batch_size=BATCH
        )
        return answers.shares(logits, answers.several(rows))
