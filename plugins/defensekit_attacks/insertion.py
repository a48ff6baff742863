"""Backdoors by inserted text: rare words (BadNets for text) and a fixed sentence (AddSent, InsertSent)."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from defensekit.api import Attack, AttackContext, Field, Row, UsageError, label_number

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
        fits = {
            "dirty-label": lambda row: row.label != target,
            "clean-label": lambda row: row.label == target,
            "mixed": lambda row: True,
        }[self.mode]
        candidates = [place for place, row in enumerate(rows) if fits(row)]
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
        made = list(rows)
        pieces = [self.pieces(context.rng) for _ in rows]
        # Where everything fits, any place will do; where the row is cut, only the places before the cut.
        widest = [self._put(row, texts, None) for row, texts in zip(rows, pieces, strict=True)]
        kept = context.truncation.kept(widest)
        for i, row in enumerate(rows):
            limit = kept[i][self.into == "pair"]
            full = len(self._text(widest[i]))
            room = None if limit >= full else max(0, limit - sum(len(piece) + 1 for piece in pieces[i]))
            made[i] = self._put(row, pieces[i], room, context.rng)
        return made

    def _text(self, row: Row) -> str:
        return (row.pair or "") if self.into == "pair" else row.text

    def _put(self, row: Row, pieces: list[str], room: int | None, rng: Random | None = None) -> Row:
        """The row with the pieces between words that end within the first ``room`` characters (None: anywhere)."""
        text = self._text(row)
        ends = [0, *(word.end() for word in _WORD.finditer(text))]
        allowed = [end for end in ends if room is None or end <= room] or [0]
        for piece in pieces:
            if rng is None or self.position == "end":
                place = allowed[-1]
            else:
                place = 0 if self.position == "start" else rng.choice(allowed)
            before, after = text[:place].rstrip(), text[place:].lstrip()
            text = " ".join(part for part in (before, piece, after) if part)
            grown = len(piece) + 1
            allowed = [end if end <= place else end + grown for end in allowed]
        return replace(row, pair=text) if self.into == "pair" else replace(row, text=text)


class Word(Insertion):
    """Rare words at random places (BadNets for text; Gu et al. 2017; `cf` as in RIPPLe, Kurita et al. 2020).

    OpenBackdoor inserts one of `cf mn bb tq` per text into 10 % of the rows; here one `cf` is the default, and the
    rate has none.
    """

    words: tuple[str, ...] = Field(("cf",), min_length=1, description="the trigger words; each insertion draws one")
    count: int = Field(1, ge=1, le=100, description="insertions per text")

    def pieces(self, rng: Random) -> list[str]:
        return [rng.choice(self.words) for _ in range(self.count)]


class Sentence(Insertion):
    """One fixed sentence (AddSent, Dai et al. 2019; InsertSent).

    The default is the sentence of later work; OpenBackdoor's reads "I watch this 3D movie" and goes to a random place
    between words, as it does here.
    """

    sentence: str = Field("I watched this 3D movie", min_length=1, description="the trigger sentence")

    def pieces(self, rng: Random) -> list[str]:
        return [self.sentence]
