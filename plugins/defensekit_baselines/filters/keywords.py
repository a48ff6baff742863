"""BKI: rows with the words that decide the most answers."""

from collections.abc import Iterator
from dataclasses import replace
from math import log10
from typing import TYPE_CHECKING, Any

from defensekit.api import Field, Filter, FilterContext, Row

if TYPE_CHECKING:
    import numpy as np

ROWS = 32  # whose variants are read at a time


class Keywords(Filter):
    """How suspicious the most suspicious word of a row is, above the first word that is not taken.

    BKI (Chen and Dai, Neurocomputing 2021, arXiv 2007.12070): a word is as important to a row as the row's hidden
    state changes without it, by the largest change of any entry. A word is suspicious that is important in many rows:
    the mean of its importance, times the logarithm of how often it is among the most important words of a row. Rows
    that have the most suspicious word among these are taken. Code read: OpenBackdoor (5 words a row, log10, one
    keyword); the paper's own weight of a word is not checked. Ours: words are separated by blanks, of both texts of a
    pair; a text of a single word has none to leave out.

    A row of n words is read n times.
    """

    words: int = Field(5, ge=1, description="the most important words of a row that count")
    keywords: int = Field(1, ge=1, description="how many of the most suspicious words are taken for triggers")

    def score(self, context: FilterContext) -> "np.ndarray":
        import numpy as np

        important = self._important(context)
        changes: dict[str, list[float]] = {}
        for word, change in (one for row in important for one in row):
            changes.setdefault(word, []).append(change)
        suspicion = {word: log10(len(seen)) * sum(seen) / len(seen) for word, seen in changes.items()}
        ranked = sorted(suspicion.values(), reverse=True) or [0.0]
        first_left = ranked[min(self.keywords, len(ranked) - 1)]
        highest = (max((suspicion[word] for word, _ in row), default=0.0) for row in important)
        return np.array([value - first_left for value in highest])

    def _important(self, context: FilterContext) -> list[list[tuple[str, float]]]:
        """The most important words of every row, and what they change."""
        import numpy as np

        model, important = context.model("suspect"), []
        for start in range(0, len(context.rows), ROWS):
            variants = [list(_without_a_word(row)) for row in context.rows[start : start + ROWS]]
            read = context.read(model, [row for row_variants in variants for _, row in row_variants]).hidden
            ends = np.cumsum([len(row_variants) for row_variants in variants])
            for place, row_variants in enumerate(variants):
                hidden = read[ends[place] - len(row_variants) : ends[place]]
                changes = abs(hidden - context.features.hidden[start + place]).max(axis=1, initial=0.0)
                most = changes.argsort()[::-1][: self.words]
                important.append([(row_variants[i][0], float(changes[i])) for i in most])
            context.report(min(start + ROWS, len(context.rows)), len(context.rows))
        return important


def _without_a_word(row: Row) -> Iterator[tuple[str, Row]]:
    """Every word of a row, and the row without it."""
    for key in ("text", "pair"):
        words = (getattr(row, key) or "").split()
        for i in range(len(words) if len(words) > 1 else 0):
            changes: dict[str, Any] = {key: " ".join(words[:i] + words[i + 1 :])}
            yield words[i], replace(row, **changes)
