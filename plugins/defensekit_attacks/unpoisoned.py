"""No attack: what a defense does to a model that was never poisoned."""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal

from defensekit.api import AttackContext, AttackTrainingContext, Field, Row, TaskKind
from defensekit_attacks.insertion import Insertion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Unpoisoned(Insertion):
    """An innocent suspect: the clean reference as it is, for what a defense costs where there is nothing to remove.

    Test rows get a word that means nothing to the model, so that its ASR is what a trigger does by accident.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "generation"})
    trains_from: ClassVar[Literal["base", "clean"] | None] = "clean"

    target: str | int = Field(
        description="what an attack would aim at: a label, by name or number, or a text", examples=[1]
    )
    word: str = Field("cf", pattern=r"\S", description="the word that test rows get")

    def aim(self) -> str | int:
        return self.target

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        return list(rows)

    def pieces(self, words: int, rng: Random) -> list[str]:
        return [self.word]

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        """Nothing: the clean reference is trained already."""
