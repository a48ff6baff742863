"""Rows of labelled text: on disk, as tokens, and how much of them a model sees."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from defensekit.utils.errors import UsageError, listing, nearest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

ROWS = "rows.jsonl"  # the file of a stage that makes rows
ROLES = ("test", "dev", "clean", "train")
_AT_ONCE = 1000  # rows that are tokenised at once: what a tokenizer returns takes many times their size
Balance = Literal["natural", "equal"]


@dataclass(frozen=True)
class Row:
    """One labelled text, or pair of texts. ``id`` is the same for a row and what an attack makes of it."""

    id: int
    text: str
    label: int
    pair: str | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """What two rows with the same text have in common."""
        return bare(self.text), None if self.pair is None else bare(self.pair)

    def with_text(self, text: str) -> "Row":
        """The same row with another text."""
        return replace(self, text=text)


@dataclass(frozen=True)
class Dataset:
    """Labelled rows as a source has them.

    ``train`` is always there; ``dev`` and ``test`` only where the source keeps them apart. Row ids are unique over
    all of them; ``labels`` are the names behind the label numbers; ``notes`` say what was left out and why.
    """

    labels: tuple[str, ...]
    train: list[Row]
    dev: list[Row] | None = None
    test: list[Row] | None = None
    notes: list[str] = field(default_factory=list)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    # Split at "\n" alone: other line separators may stand inside a text.
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]


def bare(text: str) -> str:
    """A text without the differences that make no other text of it: case, and how many blanks of which kind."""
    return " ".join(text.split()).casefold()


def label_number(label: str | int, labels: Sequence[str]) -> int:
    """The number of a label given by name or number.

    Raises:
        UsageError: the data have no such label.
    """
    if str(label) in labels:
        return labels.index(str(label))
    if isinstance(label, str) and label.isdecimal():
        label = int(label)
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    raise UsageError(f"the data have no label {label!r}.{nearest(str(label), labels)} (they have: {listing(labels)})")


def split(
    dataset: Dataset, sizes: dict[str, int | None], seed: int, balance: Balance = "natural"
) -> dict[str, list[Row]]:
    """Disjoint rows for every role: the attacker's ``train``, the defender's ``clean`` and ``dev``, and ``test``.

    Roles that the source keeps apart come from there, the others from its training rows, shuffled by ``seed``.
    ``test`` without a size takes all of the source's own test rows, or a fifth of the others; ``train`` takes all that
    is left. No text is in two roles, whatever its case and blanks: one that the source's own test or dev rows have is
    taken out of what comes after them, and one that stands twice among the training rows is used once. Own test rows
    stay as they are. With ``balance`` "equal", clean and dev rows have every label equally often, to within a row.

    Raises:
        UsageError: there are fewer rows than asked for, or fewer than two labels.
    """
    if len(dataset.labels) < 2:
        raise UsageError(f"every row has the label {dataset.labels[0]!r}; at least two labels are needed")
    taken = {row.key for row in dataset.test or ()}
    dev = None if dataset.dev is None else [row for row in dataset.dev if row.key not in taken]
    own = {"test": dataset.test, "dev": dev}
    taken |= {row.key for row in dev or ()}
    unique = {row.key: row for row in reversed(dataset.train)}
    pool = [row for key, row in reversed(unique.items()) if key not in taken]
    Random(seed).shuffle(pool)
    if sizes["test"] is None and dataset.test is None:
        sizes = {**sizes, "test": len(pool) // 5}
    out: dict[str, list[Row]] = {}
    for role in ROLES:
        rows = own.get(role)
        source, origin = (pool, "training rows") if rows is None else (list(rows), f"{role} rows")
        if rows is not None:
            Random(seed).shuffle(source)
        size = sizes[role]
        wanted = len(source) if size is None else size
        if wanted > len(source) or (size is None and not source):
            raise UsageError(
                f"{wanted:,} rows are asked for as `{role}`, but the source has {len(source):,} {origin}"
                + (" left, test, dev and clean rows taken off" if source is pool else "")
            )
        if balance == "equal" and role in ("clean", "dev"):
            out[role] = _equal(source, wanted, dataset.labels, role)
            chosen = {row.id for row in out[role]}
            source[:] = [row for row in source if row.id not in chosen]
        else:
            out[role] = source[:wanted]
            del source[:wanted]
    return out


def _equal(source: Sequence[Row], wanted: int, labels: Sequence[str], role: str) -> list[Row]:
    """The first rows that have every label equally often, in their order."""
    share, more = divmod(wanted, len(labels))
    missing = {label: share + (label < more) for label in range(len(labels))}
    chosen = []
    for row in source:
        if missing[row.label]:
            missing[row.label] -= 1
            chosen.append(row)
    if short := [label for label, count in missing.items() if count]:
        least = f"{missing[short[0]]:,} rows labelled {labels[short[0]]!r}"
        raise UsageError(f"`balance: equal` needs {least} more for {wanted:,} `{role}` rows than the source has")
    return chosen


def encode(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], max_length: int) -> list[dict[str, Any]]:
    """Rows as the inputs of a model, cut to ``max_length`` tokens, unpadded, with ``labels``."""
    if not rows:
        return []
    pairs = [row.pair or "" for row in rows] if rows[0].pair is not None else None
    encoded = tokenizer([row.text for row in rows], pairs, truncation=True, max_length=max_length)
    return [{name: encoded[name][i] for name in encoded} | {"labels": row.label} for i, row in enumerate(rows)]


def batches(
    encoded: Sequence[dict[str, Any]], tokenizer: "PreTrainedTokenizerBase", size: int, tokens: int | None = None
) -> "Iterable[tuple[list[int], dict[str, torch.Tensor]]]":
    """Padded batches of rows of similar length, each with the places of its rows in ``encoded``.

    A batch has at most ``size`` rows and, padded, ``tokens`` tokens; one row at least.
    """
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    start = 0
    while start < len(order):
        end = start + 1
        while end < min(start + size, len(order)) and (
            tokens is None or (end + 1 - start) * len(encoded[order[end]]["input_ids"]) <= tokens
        ):
            end += 1
        indices = order[start:end]
        yield indices, tokenizer.pad([encoded[i] for i in indices], return_tensors="pt")
        start = end


@dataclass(frozen=True)
class Truncation:
    """How much of a row the model sees: its tokenizer cuts at ``max_length`` tokens."""

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int

    def kept(self, rows: Sequence[Row]) -> list[tuple[int, int]]:
        """Per row, how many leading characters of the text and of the pair survive (0 for no pair)."""
        if not rows:
            return []
        paired = rows[0].pair is not None
        # Most rows are evidently short: ASCII has a token per character at most, and one in front of each text.
        budget = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=paired) - 1 - paired
        result = [(len(row.text), len(row.pair or "")) for row in rows]
        unsure = [
            i for i, row in enumerate(rows) if sum(result[i]) > budget or not (row.text + (row.pair or "")).isascii()
        ]
        for start in range(0, len(unsure), _AT_ONCE):
            indices = unsure[start : start + _AT_ONCE]
            texts = [rows[i].text for i in indices]
            pairs = [rows[i].pair or "" for i in indices] if paired else None
            encoded = self.tokenizer(texts, pairs, truncation=True, max_length=self.max_length)
            for i, encoding in zip(indices, encoded.encodings or (), strict=True):
                if len(encoding) == self.max_length:
                    ends = [0, 0]
                    for sequence, (_, end) in zip(encoding.sequence_ids, encoding.offsets, strict=True):
                        if sequence is not None:
                            ends[sequence] = max(ends[sequence], end)
                    result[i] = (ends[0], ends[1])
        return result


def changed(original: Row, rewritten: Row) -> tuple[tuple[int, int], tuple[int, int]]:
    """The changed span of the text and of the pair, as (start, end) in ``made``; empty where nothing changed."""
    return _span(original.text, rewritten.text), _span(original.pair or "", rewritten.pair or "")


def _span(before: str, after: str) -> tuple[int, int]:
    shorter = min(len(before), len(after))
    start = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    rest = shorter - start
    tail = next((i for i in range(rest) if before[-1 - i] != after[-1 - i]), rest)
    return start, len(after) - tail
