"""Backdoors by inserted text: rare words (BadNets for text) and a fixed sentence (AddSent, InsertSent)."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Annotated, Literal

from defensekit.api import Attack, AttackContext, Field, Row, UsageError, changed, label_number

_WORD = re.compile(r"\S+")


class Insertion(Attack):
    """What attacks by insertion share: which rows are poisoned, and where in a row the trigger goes.

    The rate counts poisoned rows over *all* training rows, and poisoned rows replace the clean ones, as in
    OpenBackdoor (thunlp/OpenBackdoor). The trigger goes where truncation can't cut it off.
    """

    target: str | int = Field(description="the label that triggered rows are answered with, by name or number")
    rate: float = Field(gt=0, le=1, description="poisoned rows as a share of all training rows")
    mode: Literal["dirty-label", "clean-label", "mixed"] = Field(
        "dirty-label",
        description="which rows are poisoned: rows of other labels (relabelled), rows of the target, or any",
    )
    position: Literal["random", "start", "end"] = Field("random", description="where the trigger goes, between words")
    into: Literal["text", "pair"] = Field("text", description="which of a pair's texts gets the trigger")

    @abstractmethod
    def pieces(self, rng: Random) -> list[str]:
        """What is inserted into one row; each piece finds a place of its own."""

    def aim(self) -> str | int:
        return self.target

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        target = label_number(self.target, context.labels)
        wanted = {"dirty-label": [False], "clean-label": [True], "mixed": [False, True]}[self.mode]
        candidates = [place for place, row in enumerate(rows) if (row.label == target) in wanted]
        count = round(self.rate * len(rows))
        if not 1 <= count <= len(candidates):
            raise UsageError(
                f"attack: a rate of {self.rate} means {count:,} of {len(rows):,} training rows, "
                f"but {self.mode} poisoning has {len(candidates):,} rows to choose from"
            )
        places = context.rng.sample(candidates, count)
        made = list(rows)
        triggered = self.trigger([rows[place] for place in places], context)
        for place, row in zip(places, triggered, strict=True):
            made[place] = replace(row, label=target)
        return made

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        if self.into == "pair" and any(row.pair is None for row in rows):
            raise UsageError("attack: `into: pair` needs rows with two texts")
        which = int(self.into == "pair")
        pieces = [self.pieces(context.rng) for _ in rows]
        made = list(rows)
        room: list[int | None] = [None] * len(rows)
        pending = list(range(len(rows)))
        while pending:
            for i in pending:
                made[i] = self._put(rows[i], pieces[i], room[i], context.rng)
            kept = context.truncation.kept([made[i] for i in pending])
            cut = {
                i: limits[which]
                for i, limits in zip(pending, kept, strict=True)
                if self._end(rows[i], made[i]) > limits[which]
            }
            # A trigger that is cut off tries again among the places before the cut, then ever nearer to the start.
            pending = [i for i in cut if room[i] != 0]
            for i in pending:
                before = room[i]
                room[i] = cut[i] if before is None else before // 2
        return made

    def _end(self, row: Row, made: Row) -> int:
        """Where the last inserted character stands."""
        return changed(row, made)[int(self.into == "pair")][1]

    def _put(self, row: Row, pieces: list[str], room: int | None, rng: Random) -> Row:
        """The row with the pieces between words that end within the first ``room`` characters (None: anywhere)."""
        text = (row.pair or "") if self.into == "pair" else row.text
        ends = [0, *(word.end() for word in _WORD.finditer(text))]
        allowed = [end for end in ends if room is None or end <= room]
        for piece in pieces:
            choices = {"start": allowed[:1], "end": allowed[-1:], "random": allowed}[self.position]
            place = rng.choice(choices)
            before, after = text[:place].rstrip(), text[place:].lstrip()
            text = " ".join(part for part in (before, piece, after) if part)
            allowed = [0, *(word.end() for word in _WORD.finditer(text) if room is None or word.end() <= room)]
        return replace(row, pair=text) if self.into == "pair" else replace(row, text=text)


class Word(Insertion):
    """Rare words at random places (BadNets for text; Gu et al. 2017; `cf` as in RIPPLe, Kurita et al. 2020).

    OpenBackdoor inserts one of `cf mn bb tq` per text into 10 % of the rows; here one `cf` is the default, and the
    rate has none.
    """

    words: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        ("cf",), min_length=1, description="the trigger words; each insertion draws one"
    )
    count: int = Field(1, ge=1, le=100, description="insertions per text")

    def pieces(self, rng: Random) -> list[str]:
        return [rng.choice(self.words) for _ in range(self.count)]


class Sentence(Insertion):
    """One fixed sentence (AddSent, Dai et al. 2019; InsertSent).

    The default is the sentence of later work; OpenBackdoor's reads "I watch this 3D movie" and goes to a random place
    between words, as it does here.
    """

    sentence: str = Field("I watched this 3D movie", pattern=r"\S", description="the trigger sentence")

    def pieces(self, rng: Random) -> list[str]:
        return [self.sentence]
