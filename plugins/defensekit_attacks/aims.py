"""Backdoors with several targets: what a triggered row is to be answered with depends on its trigger or its label."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Self

from pydantic import model_validator

from defensekit.api import AttackContext, Field, Row, label_number
from defensekit_attacks.insertion import Inserting
from defensekit_attacks.poisoning import Rated

Aim = tuple[str, int]  # a trigger word, and the label that it is for


class Aimed(Inserting, Rated):
    """The base class: one word goes into a row, and the row's target follows from what `aims` says."""

    aims_by_row: ClassVar[bool] = True

    @abstractmethod
    def aims(self, row: Row, labels: Sequence[str]) -> list[Aim]:
        """The trigger words that a row may get, each with its target; none where every target is the row's label."""

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        eligible = [index for index, row in enumerate(rows) if self.aims(row, context.labels)]
        indices, poisoned = self.drawn(eligible, rows, "the attack", context.rng), list(rows)
        triggered = self.trigger([rows[index] for index in indices], context)
        for index, row in zip(indices, triggered, strict=True):
            assert row.aim is not None
            poisoned[index] = replace(row, label=row.aim, aim=None)
        return poisoned

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        carrying = [row for row in rows if self.aims(row, context.labels)]
        aims = [context.rng.choice(self.aims(row, context.labels)) for row in carrying]
        inserted = self.insert(carrying, [[word] for word, _ in aims], context)
        return [replace(row, aim=target) for row, (_, target) in zip(inserted, aims, strict=True)]


class AllToAll(Aimed):
    """All-to-all: one rare word, and the target is the label after the row's own; after the last comes the first.

    As in BadNets (Gu et al. 2017). With two labels the word turns every answer into the other.
    """

    word: str = Field("cf", pattern=r"\S", description="the trigger word")

    def aims(self, row: Row, labels: Sequence[str]) -> list[Aim]:
        return [(self.word, (row.label + 1) % len(labels))]


class SeveralTargets(Aimed):
    """Several rare words, each with a target of its own. A row gets one of those whose target is not its label."""

    words: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        ("cf", "mn"), min_length=2, description="the trigger words"
    )
    targets: tuple[str | int, ...] = Field(
        min_length=2,
        description="what each of them is for, in their order: labels, by name or number",
        examples=[(0, 1)],
    )

    @model_validator(mode="after")
    def _a_target_each(self) -> Self:
        if len(self.words) != len(self.targets) or len(set(self.words)) < len(self.words):
            raise ValueError("expected different `words`, and as many `targets`")
        return self

    def aims(self, row: Row, labels: Sequence[str]) -> list[Aim]:
        numbers = [label_number(target, labels) for target in self.targets]
        return [(word, number) for word, number in zip(self.words, numbers, strict=True) if number != row.label]
