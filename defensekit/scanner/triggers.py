"""Suspicious tokens tried as triggers: inserted into clean rows, and compared with random tokens as frequent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from defensekit.defense.triggers.insertion import insert, positions, spell
from defensekit.models import answers
from defensekit.models.inference import predict
from defensekit.scanner.result import Tried, Triggers
from defensekit.scanner.rows import Outliers
from defensekit.text import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS = 10  # suspicious tokens that are tried, and as many random ones
ROWS = 100  # clean rows that they are inserted into
FEWEST = 10  # rows with another answer that a label needs: a share of fewer is too noisy


def is_word(tokenizer: "PreTrainedTokenizerBase", token: int) -> bool:
    """Whether a token is a word: writing it between two words gives this token again, unlike a piece of a word."""
    text = spell(tokenizer, token)
    return bool(text) and token in tokenizer(f"a {text} a", add_special_tokens=False)["input_ids"]


def pick(tokenizer: "PreTrainedTokenizerBase", outliers: Outliers, seed: int) -> tuple[list[int], list[int]]:
    """Pick the most suspicious words, and for each a random word of similar frequency that moved as well."""
    import numpy as np

    order = np.argsort(-np.nan_to_num(outliers.z, nan=-np.inf), kind="stable")
    judged = [int(token) for token in order if outliers.group[token] >= 0]
    candidates: list[int] = []
    for token in judged:
        if len(candidates) == TOKENS:
            break
        if is_word(tokenizer, token):
            candidates.append(token)
    rng = Random(seed)
    controls: list[int] = []
    for candidate in candidates:
        group = [t for t in judged if outliers.group[t] == outliers.group[candidate] and t not in candidates]
        rng.shuffle(group)
        other = next((t for t in group if t not in controls and is_word(tokenizer, t)), None)
        controls += [] if other is None else [other]
    return candidates, controls


@dataclass(frozen=True)
class TriggerTrial:
    """Inserts tokens into rows: every token at the same position of a row, drawn by the seed."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    rows: Sequence[Row]
    labels: Sequence[str]
    max_length: int
    seed: int

    def run(
        self, candidates: Sequence[int], controls: Sequence[int], report: Callable[[int, int], None]
    ) -> Triggers | None:
        """Try candidates and controls; None without candidates, controls or enough rows."""
        if not candidates or not controls:
            return None
        at = positions(self.rows, self.max_length, self.seed)
        total = len(candidates) + len(controls) + 1
        before = self._answers(self.rows)
        tried = []
        for done, token in enumerate((*candidates, *controls)):
            report(done + 1, total)
            text = spell(self.tokenizer, token)
            triggered = [insert(row, text, place) for row, place in zip(self.rows, at, strict=True)]
            name = str(self.tokenizer.convert_ids_to_tokens(token))
            tried.append(flips(name, before, self._answers(triggered), self._names))
        report(total, total)
        if not any(one.of for one in tried):
            return None
        ours, others = tried[: len(candidates)], tried[len(candidates) :]
        excess = max(one.flipped for one in ours) - max(one.flipped for one in others)
        few = (~before).sum(axis=0) < FEWEST
        untried = [name for name, none in zip(self._names, few, strict=True) if none]
        return Triggers(rows=len(self.rows), candidates=ours, controls=others, excess=excess, untried=untried)

    @property
    def _names(self) -> list[str]:
        return answers.names(self.labels, answers.several(self.rows))

    def _answers(self, rows: Sequence[Row]) -> "NDArray[Any]":
        return answered(self.model, self.tokenizer, rows, self.max_length)


def answered(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], max_length: int
) -> "NDArray[Any]":
    """Whether a model gives each answer to each row, (rows, answers), bool."""
    each = answers.several(rows)
    logits = predict(model, tokenizer, rows, max_length=max_length, precision="float32")
    given: NDArray[Any] = answers.given(answers.shares(logits, each), each).numpy()
    return given


def flips(token: str, before: "NDArray[Any]", after: "NDArray[Any]", labels: Sequence[str]) -> Tried:
    """The answer that the largest share of rows changes to, among rows that had another.

    Args:
        token: the token that was inserted.
        before: whether each answer is given without it, (rows, answers), bool.
        after: the same with it.
        labels: what the answers are called.
    """
    best = Tried(token=token, label="", flipped=0.0, of=0)
    for number, label in enumerate(labels):
        others = ~before[:, number]
        if (of := int(others.sum())) >= FEWEST:
            share = float(after[others, number].mean())
            if share > best.flipped or not best.of:
                best = Tried(token=token, label=label, flipped=share, of=of)
    return best
