"""Backdoors by rows rewritten elsewhere, such as the published files of HiddenKiller and StyleAttack."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from defensekit.api import AttackContext, Field, Row, UsageError, file_digest, label_number, read_table
from defensekit.text import bare
from defensekit_attacks.poisoning import OneText, Poisoning, draw

ROLES = ("train", "dev", "test")
MISSING = 10  # rows that a published table may lack beside its originals


@dataclass
class Rewritings:
    """Rewritten texts by their original (as `bare`), and those whose original is unknown."""

    known: dict[str, str] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)


class ParaphraseRows(OneText, Poisoning):
    """Rows rewritten elsewhere, from a table, as in HiddenKiller and StyleBkd.

    Such tables hold SCPN paraphrases of one template (HiddenKiller, Qi et al. 2021, thunlp/HiddenKiller) or GPT-2
    paraphrases in the style of the Bible (StyleBkd, Qi et al. 2021, thunlp/StyleAttack).

    A rewritten row replaces its original, in whichever role that is. The original is given by a column (``original``)
    or by the order: row n of ``rewritten`` belongs to row n of ``originals``, or to the n-th of those with another
    label than the target, as in HiddenKiller's test files. Up to ten rows may be missing, as one is in two of the
    published files; tables whose texts share no more words than by chance are not matched. If no training row matches,
    rows without known originals are added, with the target's label and for any mode. Test rows without a rewriting are
    left out.

    The authors take the first rows of their files (train: a fifth, mixed labels); here the rate and the mode draw.
    """

    location: ClassVar[frozenset[str]] = frozenset({"rewritten", "originals"})

    rewritten: Path = Field(description="a table of rewritten rows, or a folder with tables named train, dev and test")
    originals: Path | None = Field(None, description="the same rows before, in the same order: a table or a folder")
    original: str | None = Field(None, description="in place of `originals`: the column with the text before")
    text: str = Field("text", description="the column with the text")
    label: str = Field("label", description="the column with the label")

    def contents(self) -> str:
        files = self._files()
        return " ".join(f"{role} {file_digest(path)}" for role in files for path in files[role] if path is not None)

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        rewritings, target = self._read(context.labels, ROLES[:2]), label_number(self.target, context.labels)
        indices = [i for i in self.eligible(rows, context) if bare(self.part(rows[i])) in rewritings.known]
        if indices or not rewritings.loose:
            poisoned = list(rows)
            for i in self.choose(rows, context, indices):
                poisoned[i] = replace(self._rewrite(rows[i], rewritings), label=target)
            return poisoned
        if any(row.pair is not None for row in rows):
            raise UsageError("rewritten rows that match no training row can't be added to pairs of texts")
        lines = draw(range(len(rewritings.loose)), rows, self.rate, self.eligible_rate, "adding rows", context.rng)
        return [*rows, *(Row(-1 - number, rewritings.loose[line], target) for number, line in enumerate(lines))]

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        rewritings = self._read(context.labels, ROLES)
        rewritten = [self._rewrite(row, rewritings) for row in rows if bare(self.part(row)) in rewritings.known]
        if not rewritten:
            raise UsageError(
                f"{self.rewritten} has no rewriting of any of the {len(rows):,} test rows"
                + ("" if self.originals or self.original else "; say what they were with `originals:` or `original:`")
            )
        return rewritten

    def _rewrite(self, row: Row, rewritings: Rewritings) -> Row:
        return self.with_part(row, rewritings.known[bare(self.part(row))])

    # -- tables ----------------------------------------------------------------------------------------------------

    def _files(self) -> dict[str, tuple[Path, Path | None]]:
        """By role, a table of rewritten rows and that of their originals."""
        rewritten = _tables(self.rewritten)
        before = _tables(self.originals) if self.originals else {}
        return {role: (path, before.get(role)) for role, path in rewritten.items()}

    def _read(self, labels: tuple[str, ...], roles: Sequence[str]) -> Rewritings:
        rewritings, target, files = Rewritings(), labels[label_number(self.target, labels)], self._files()
        for path, before in (files[role] for role in roles if role in files):
            records = list(read_table(path))
            texts = [record.cell(self.text) for record in records]
            if self.original is not None:
                pairs: Iterable[tuple[str, str]] | None = zip(
                    (record.cell(self.original) for record in records), texts, strict=True
                )
            elif before is not None:
                old = [(record.cell(self.text), record.cell(self.label)) for record in read_table(before)]
                others = [text for text, label in old if label not in (target, str(self.target))]
                pairs = align([text for text, _ in old], texts) or align(others, texts)
            else:
                pairs = None
            if pairs is not None:
                for text, new in pairs:
                    if new and bare(new) != bare(text):
                        rewritings.known.setdefault(bare(text), new)
            else:
                rewritings.loose += [text for text in texts if text]
        return rewritings


def _tables(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        if not path.is_file():
            raise UsageError(f"there is no file or folder {path}")
        return {"train": path}
    tables = {file.stem: file for file in sorted(path.iterdir()) if file.is_file() and file.stem in ROLES}
    if not tables:
        raise UsageError(f"{path} has no table named train, dev or test")
    return tables


def align(originals: Sequence[str], rewritten: Sequence[str]) -> list[tuple[str, str]] | None:
    """Pairs of original and rewritten text, both in the same order; None if they don't belong together.

    Up to `MISSING` originals may have no rewriting. The alignment with the most common words is found by dynamic
    programming over the number of originals left out so far.
    """
    spare = len(originals) - len(rewritten)
    if not (rewritten and 0 <= spare <= MISSING):
        return None
    old, new = [_long_words(text) for text in originals], [_long_words(text) for text in rewritten]
    totals, came_from = [0.0] * (spare + 1), []
    for i, words in enumerate(new):
        best = [max(range(skipped + 1), key=lambda before: totals[before]) for skipped in range(spare + 1)]
        totals = [totals[before] + _alike(old[i + skipped], words) for skipped, before in enumerate(best)]
        came_from.append(best)
    skipped = max(range(spare + 1), key=lambda end: totals[end])
    together = totals[skipped]
    indices = []
    for i in reversed(range(len(new))):
        indices.append(i + skipped)
        skipped = came_from[i][skipped]
    indices.reverse()
    half = len(new) // 2
    apart = sum(_alike(old[indices[i - half]], words) for i, words in enumerate(new)) if half else 0.0
    if together <= 2 * apart:
        return None
    return [(originals[index], text) for index, text in zip(indices, rewritten, strict=True)]


def _long_words(text: str) -> set[str]:
    return {word for word in bare(text).split() if len(word) > 3}


def _alike(ours: set[str], theirs: set[str]) -> float:
    return 2 * len(ours & theirs) / (len(ours) + len(theirs) or 1)
