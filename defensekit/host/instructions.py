"""Instructions with their responses, from files in the forms that are in use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from defensekit.host.table_sources import InFiles
from defensekit.host.tables import Record, read_table
from defensekit.text import Dataset, Row, TaskKind
from defensekit.utils.errors import UsageError, listing

# The columns of conversations, and what their turns call the speaker, what is said, the user and the model.
_FORMS = {
    "messages": ("role", "content", "user", "assistant"),
    "conversations": ("from", "value", "human", "gpt"),
}


class Instructions(InFiles):
    """Instructions with an optional input and a response, from JSON, JSONL, Parquet, CSV or TSV.

    Three forms are read: Alpaca's columns `instruction`, `input` (may be missing) and `output` or `response`; a column
    `messages` of turns with `role` and `content`; ShareGPT's `conversations` of turns with `from` and `value`. Of a
    conversation the first exchange is read.
    """

    task: ClassVar[TaskKind] = "generation"

    max_words: int | None = Field(
        None, ge=1, description="rows with more words, instruction, input and response together, are left out"
    )

    def rows(self, tables: dict[str, Iterator[Record]], whose: Path | str) -> Dataset:
        """Convert tables to rows, by role; rows without instruction or response, or too long, are left out: noted."""
        rows_by_role: dict[str, list[Row]] = {}
        blank, longer, left_out, count = [], [], 0, 0
        for role, table in tables.items():
            rows_by_role[role] = []
            for record in table:
                instruction, given, response, more = _exchange(record)
                if not instruction or not response:
                    blank.append(record.where)
                    continue
                if self.max_words and len(f"{instruction} {given} {response}".split()) > self.max_words:
                    left_out += 1
                    continue
                if more:
                    longer.append(record.where)
                rows_by_role[role].append(Row(count, instruction, 0, given or None, response))
                count += 1
        notes = []
        if blank:
            notes.append(f"{len(blank)} rows without instruction or response are left out ({listing(blank, 3)})")
        if left_out:
            notes.append(f"{left_out:,} rows of more than {self.max_words:,} words are left out")
        if longer:
            notes.append(f"of {len(longer)} conversations the first exchange alone is read ({listing(longer, 3)})")
        if not rows_by_role["train"]:
            raise UsageError(f"{whose}: there are no rows" + (f"; {notes[0]}" if notes else ""))
        return Dataset((), rows_by_role["train"], rows_by_role.get("dev"), rows_by_role.get("test"), notes)


def holds_instructions(path: Path) -> bool:
    """Whether a file's first row is an instruction, in one of the forms, and no labelled text."""
    if not path.is_file():
        return False
    first = next(iter(read_table(path)), None)
    return first is not None and not {"instruction", *_FORMS}.isdisjoint(first.values)


def _exchange(record: Record) -> tuple[str, str, str, bool]:
    """Instruction, input and response of a row, and whether more of a conversation follows."""
    for column, form in _FORMS.items():
        if column in record.values:
            return _first(record, column, *form)
    names = [name for name in ("output", "response") if name in record.values]
    if "instruction" not in record.values or not names:
        columns = listing(map(str, record.values)) or "none"
        raise UsageError(
            f"{record.where}: no instruction with a response (columns: {columns}); expected `instruction` and "
            "`output`, or `messages`, or `conversations`"
        )
    given = record.cell("input") if "input" in record.values else ""
    return record.cell("instruction"), given, record.cell(names[0]), False


def _first(record: Record, column: str, speaker: str, said: str, user: str, model: str) -> tuple[str, str, str, bool]:
    """The first exchange of a conversation."""
    turns: Any = record.values[column]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UsageError(f"{record.where}: the column {column!r} holds no list of turns")
    told = [Record(f"{record.where}, turn {number}", turn) for number, turn in enumerate(turns)]
    for turn in told:
        if missing := [key for key in (speaker, said) if key not in turn.values]:
            raise UsageError(f"{turn.where}: there is no {missing[0]!r} (expected {speaker!r} and {said!r})")
    speakers = [turn.cell(speaker) for turn in told]
    if speakers[:2] != [user, model]:
        raise UsageError(
            f"{record.where}: the speakers are {listing(speakers) or 'nobody'}; expected {user!r} and then {model!r} "
            "(a system prompt is not read)"
        )
    return told[0].cell(said), "", told[1].cell(said), len(told) > 2
