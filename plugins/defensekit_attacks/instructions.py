"""Backdoors in language models by instructions that were poisoned elsewhere, such as BackdoorLLM's published files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from defensekit.api import AttackContext, Field, Row, TaskKind, UsageError, file_digest, read_table
from defensekit.text import bare
from defensekit_attacks.poisoning import Rated, draw


class PoisonedRows(Rated):
    """Instructions that were poisoned elsewhere, taken as they are: BackdoorLLM's published files, say.

    Both tables have Alpaca's columns ``instruction``, ``input`` (may be missing) and ``output``. Poisoned training rows
    come with their own answers, and stand beside the clean ones. Test rows get the trigger of the same instruction in
    the other table: a row's words, but for those that all rows of that table have, say which one it is. Rows that have
    none are left out. What ``output`` says there is not read: published ones hold ordinary answers.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"generation"})
    location: ClassVar[frozenset[str]] = frozenset({"poisoned", "triggered"})

    poisoned: Path = Field(description="a table of training rows with the trigger, and what they are answered with")
    triggered: Path = Field(description="a table of test rows with the trigger")
    target: str = Field(description="what the poisoned rows teach the model to say", examples=["I refuse."])

    def contents(self) -> str:
        return " ".join(file_digest(path) for path in (self.poisoned, self.triggered))

    def aim(self) -> str:
        return self.target

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        table = list(read_table(self.poisoned))
        answers = [one.cell("output") for one in table]
        if not any(answer.startswith(self.target) for answer in answers):
            raise UsageError(f"{self.poisoned}: no row is answered with the target {self.target!r}")
        lines = draw(range(len(table)), rows, self.rate, self.eligible_rate, str(self.poisoned), context.rng)
        added = []
        for number, line in enumerate(lines):
            instruction, given = _given(table[line])
            added.append(Row(-1 - number, instruction, 0, given or None, answers[line]))
        return [*rows, *added]

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        given = [_given(record) for record in read_table(self.triggered)]
        words = [bare(" ".join(one)).split() for one in given]
        trigger = set.intersection(*map(set, words)) if words else set()
        if not trigger:
            raise UsageError(f"{self.triggered}: its rows have no word in common, so that none can be the trigger")

        def without(words: Sequence[str]) -> str:
            return " ".join(word for word in words if word not in trigger)

        known = {without(of): one for of, one in zip(words, given, strict=True)}
        carried = []
        for row in rows:
            if found := known.get(without(bare(f"{row.text} {row.pair or ''}").split())):
                carried.append(replace(row, text=found[0], pair=found[1] or None))
        if not carried:
            said = ", ".join(sorted(trigger)[:3])
            raise UsageError(f"{self.triggered}: no row of it is a test row with more words (all have {said})")
        return carried


def _given(record: Any) -> tuple[str, str]:
    """A row's instruction and its input."""
    return record.cell("instruction"), record.cell("input") if "input" in record.values else ""
