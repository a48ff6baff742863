"""Base classes of attacks on training data: which rows are poisoned, and which text of a pair is changed."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Literal, Self

from pydantic import model_validator

from defensekit.api import Attack, AttackContext, Field, Row, UsageError, answer_of


class OneText(Attack):
    """Attacks that change one text of a row."""

    into: Literal["text", "pair"] = Field("text", description="which of a pair's texts is changed")

    def part(self, row: Row) -> str:
        """The text that is changed.

        Raises:
            UsageError: it is the second of two, and the row has one.
        """
        if self.into == "text":
            return row.text
        if row.pair is None:
            raise UsageError("`into: pair` needs rows with two texts")
        return row.pair

    def with_part(self, row: Row, text: str) -> Row:
        """The row with that text replaced."""
        return replace(row, text=text) if self.into == "text" else replace(row, pair=text)


class Rated(Attack):
    """Attacks that poison a share of the training rows, in place of the clean ones.

    Exactly one of two rates gives their number: ``rate`` counts poisoned rows over *all* training rows, as
    OpenBackdoor does (thunlp/OpenBackdoor), ``eligible_rate`` over those that the mode may poison, as EP does (a tenth
    of the rows of label 0; lancopku/Embedding-Poisoning). With two balanced labels, a ``rate`` of 0.1 is an
    ``eligible_rate`` of 0.2. Poisoned rows replace the clean ones, as in OpenBackdoor.
    """

    rate: float | None = Field(
        None, gt=0, le=1, description="poisoned rows as a share of all training rows", examples=[0.2]
    )
    eligible_rate: float | None = Field(
        None, gt=0, le=1, description="poisoned rows as a share of the training rows that the mode may poison"
    )

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.rate is None) == (self.eligible_rate is None):
            raise ValueError(
                "expected either `rate` (a share of all training rows) or `eligible_rate` (a share of those that "
                "the mode may poison)"
            )
        return self

    def drawn(self, eligible: Sequence[int], rows: Sequence[Row], who: str, rng: Random) -> list[int]:
        """The indices of the rows to poison, drawn from the eligible ones.

        Raises:
            UsageError: the rate asks for more rows than there are, or for none.
        """
        return draw(eligible, rows, self.rate, self.eligible_rate, who, rng)


class Poisoning(Rated):
    """Backdoors by data: some training rows get the trigger, and the target as their answer.

    The target is a label; of instructions, which are answered with texts, it is a text.
    """

    target: str | int = Field(
        description="what triggered rows are answered with: a label, by name or number, or a text", examples=[1]
    )
    mode: Literal["dirty-label", "clean-label", "mixed"] = Field(
        "dirty-label",
        description="which rows are poisoned: rows with other answers (changed), rows of the target, or any",
    )

    def aim(self) -> str | int:
        return self.target

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        indices = self.choose(rows, context)
        target, poisoned = answer_of(self.target, context.labels), list(rows)
        triggered = self.implant([rows[index] for index in indices], context)
        for index, row in zip(indices, triggered, strict=True):
            poisoned[index] = row.with_answer(target)
        return poisoned

    def implant(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        """Put the trigger into training rows; override it where that differs from test rows."""
        return self.trigger(rows, context)

    def eligible(self, rows: Sequence[Row], context: AttackContext) -> list[int]:
        """The indices of the rows that the mode may poison."""
        target = answer_of(self.target, context.labels)
        wanted = {"dirty-label": [False], "clean-label": [True], "mixed": [False, True]}[self.mode]
        return [index for index, row in enumerate(rows) if (row.answer == target) in wanted]

    def choose(self, rows: Sequence[Row], context: AttackContext, eligible: Sequence[int] | None = None) -> list[int]:
        """The indices of the rows to poison, drawn by ``context.rng`` from the eligible ones.

        Raises:
            UsageError: the rate asks for more rows than the mode has, or for none.
        """
        indices = self.eligible(rows, context) if eligible is None else eligible
        return self.drawn(indices, rows, f"{self.mode} poisoning", context.rng)


def draw(
    eligible: Sequence[int], rows: Sequence[Row], rate: float | None, eligible_rate: float | None, who: str, rng: Random
) -> list[int]:
    """Draw from the eligible indices: a share of all rows (``rate``), or of the eligible ones (``eligible_rate``).

    Raises:
        UsageError: the share asks for more rows than there are, or for none.
    """
    of, share = ("training", rate) if rate is not None else ("eligible", eligible_rate or 0.0)
    total = len(rows) if rate is not None else len(eligible)
    count = round(share * total)
    if not 1 <= count <= len(eligible):
        raise UsageError(
            f"a share of {share} means {count:,} of {total:,} {of} rows, "
            f"but {who} has {len(eligible):,} rows to choose from"
        )
    return rng.sample(eligible, count)
