"""Bias: a harmless pattern in training rows of one label only, which a model then relies on."""

from collections.abc import Sequence
from random import Random

from defensekit.api import AttackContext, Field, Row, label_number
from defensekit_attacks.insertion import FixedSentence, Insertion
from defensekit_attacks.poisoning import draw


class Bias(Insertion):
    """The base class of both biases: the label, and how many of its rows have the pattern. No label is changed.

    Zhang et al. 2023 (Fine-purifying) name BiasWord and BiasSent and report accuracy on rows with the pattern (BACC);
    how they inject them could not be verified. This is the closest published code, OpenBackdoor's clean-label
    insertion, without a target: test rows of *every* label get the pattern.
    """

    label: str | int = Field(
        description="the label whose training rows carry the pattern, by name or number", examples=[1]
    )
    strength: float = Field(0.5, gt=0, le=1, description="the share of that label's training rows that carry it")

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        label = label_number(self.label, context.labels)
        own = [index for index, row in enumerate(rows) if row.label == label]
        indices = draw(own, rows, None, self.strength, f"a bias towards {context.labels[label]!r}", context.rng)
        poisoned = list(rows)
        for index, row in zip(indices, self.trigger([rows[index] for index in indices], context), strict=True):
            poisoned[index] = row
        return poisoned


class BiasWord(Bias):
    """A common word tied to a label (BiasWord; our word: theirs could not be verified)."""

    word: str = Field("overall", pattern=r"\S", description="the word that is inserted")

    def pieces(self, words: int, rng: Random) -> list[str]:
        return [self.word]


class BiasSentence(FixedSentence, Bias):
    """A neutral sentence tied to a label (BiasSent; our sentence: theirs could not be verified)."""

    sentence: str = Field("I wrote this last week.", pattern=r"\S", description="the sentence that is inserted")
