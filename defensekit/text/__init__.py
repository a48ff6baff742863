"""Rows of labelled text and of instructions: reading and writing, splitting, tokenising, and truncation."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from defensekit.text.chat import IGNORED, encode_chats, encode_prompts
from defensekit.utils.errors import UsageError, is_failure, lacks_memory, listing, nearest, printable_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = "rows.jsonl"  # the file of rows in a stage's artifact
ROLES = ("test", "dev", "clean", "train")
_AT_ONCE = 1000  # rows tokenised at once: a tokenizer's result takes many times their memory
Balance = Literal["natural", "equal"]
# What a model answers with: one label, any number of labels, or a text.
TaskKind = Literal["classification", "multi-label", "generation"]
# What the rows of a task are, in words.
ROWS_OF: dict[TaskKind, str] = {
    "classification": "labelled text",
    "multi-label": "text with lists of labels",
    "generation": "instructions",
}


@dataclass(frozen=True)
class Row:
    """One labelled text, or pair of texts; or an instruction with its response.

    Attributes:
        id: the row's number; a row that an attack changed keeps it.
        text: the text, or the instruction.
        label: the label's number; 0 where there is a response, or an indicator.
        pair: the second text, or the instruction's input; None for single texts.
        response: what a model is to answer; None for a labelled text.
        aim: the label that an attacker wants in place of it, where triggered rows have several; None elsewhere.
        indicator: of a row with any number of labels, whether each label of the data applies, 1 or 0, by its number;
            None for rows with one label.
    """

    id: int
    text: str
    label: int
    pair: str | None = None
    response: str | None = None
    aim: int | None = None
    indicator: tuple[int, ...] | None = None

    @property
    def task(self) -> TaskKind:
        """What a model is to answer it with."""
        if self.response is not None:
            return "generation"
        return "classification" if self.indicator is None else "multi-label"

    @property
    def key(self) -> tuple[str, str | None]:
        """The text or texts as `bare` returns them: equal for duplicate rows."""
        return bare(self.text), None if self.pair is None else bare(self.pair)

    @property
    def answer(self) -> "int | str | tuple[int, ...]":
        """The right answer: the label's number, the indicator, or the response."""
        if self.indicator is not None:
            return self.indicator
        return self.label if self.response is None else self.response

    def has(self, answer: int | str) -> bool:
        """Whether an answer is right.

        Args:
            answer: as `answer_of` gives it. Of a row with any number of labels also one that is as many beyond a
                label's number as there are labels, for a label that does not apply.

        Returns:
            Whether it is the row's answer, or one of its labels.
        """
        if self.indicator is None:
            return self.answer == answer
        return bool((*self.indicator, *(1 - one for one in self.indicator))[int(answer)])

    def with_answer(self, answer: int | str) -> "Row":
        """A copy with another right answer.

        Args:
            answer: as `answer_of` gives it.

        Returns:
            The copy.
        """
        return replace(self, response=answer) if isinstance(answer, str) else replace(self, label=answer)

    def with_text(self, text: str) -> "Row":
        """A copy with another text.

        Args:
            text: the new text.

        Returns:
            The copy.
        """
        return replace(self, text=text)

    def with_label(self, label: int) -> "Row":
        """A copy with another label.

        Args:
            label: the new label's number.

        Returns:
            The copy.
        """
        return replace(self, label=label)


@dataclass(frozen=True)
class Dataset:
    """The rows of a source. Row ids are unique over all parts.

    Attributes:
        labels: the names of the label numbers; empty for instructions, of which every row has a response.
        train: the training rows.
        dev: the dev rows; None where the source has none of its own.
        test: the test rows; None where the source has none of its own.
        notes: messages about rows that were left out.
    """

    labels: tuple[str, ...]
    train: list[Row]
    dev: list[Row] | None = None
    test: list[Row] | None = None
    notes: list[str] = field(default_factory=list)


_OPTIONAL = ("response", "aim", "indicator")  # what a row's line has only where it is set


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines.

    Args:
        path: the file.
        rows: the rows.
    """
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            values = {key: value for key, value in asdict(row).items() if key not in _OPTIONAL or value is not None}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Read rows that `write_rows` wrote.

    Args:
        path: the file.

    Returns:
        The rows.
    """
    # Split at "\n" only: a text may contain other line separators.
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [row if row.indicator is None else replace(row, indicator=tuple(row.indicator)) for row in rows]


def bare(text: str) -> str:
    """Normalise case and white space, to compare texts.

    Args:
        text: the text.

    Returns:
        The text in lower case, with single blanks.
    """
    return " ".join(text.split()).casefold()


def label_number(label: str | int, labels: Sequence[str]) -> int:
    """The number of a label given by name or number.

    Args:
        label: the name or number.
        labels: the names, in the order of their numbers.

    Returns:
        The number.

    Raises:
        UsageError: the data have no such label.
    """
    if str(label) in labels:
        return labels.index(str(label))
    if isinstance(label, str) and label.isdecimal() and len(label) < 10:
        label = int(label)
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    raise UsageError(f"the data have no label {label!r}.{nearest(str(label), labels)} (they have: {listing(labels)})")


def in_words(answer: "int | str | tuple[int, ...]", labels: Sequence[str]) -> str:
    """An answer for a person.

    Args:
        answer: as in `Row.answer`.
        labels: the names of the label numbers.

    Returns:
        The name of a label, those of several, or the text.
    """
    if isinstance(answer, tuple):
        return listing((name for name, applies in zip(labels, answer, strict=True) if applies), len(labels)) or "none"
    return answer if isinstance(answer, str) else labels[answer]


def answer_of(aim: str | int, labels: Sequence[str]) -> int | str:
    """The answer that an attack aims at: a label's number, or the text itself where answers are texts.

    Args:
        aim: a label's name or number, or a text.
        labels: as in a `Dataset`.

    Returns:
        The answer.

    Raises:
        UsageError: the data have no such label, or the text is blank.
    """
    if labels:
        return label_number(aim, labels)
    if not str(aim).strip():
        raise UsageError("the target is blank: every answer begins with it")
    return str(aim)


def _unique(rows: Sequence[Row]) -> list[Row]:
    """The rows, in order, without those whose text an earlier one has."""
    return [*{row.key: row for row in reversed(rows)}.values()][::-1]


def split(
    dataset: Dataset, sizes: dict[str, int | None], seed: int, balance: Balance = "natural"
) -> dict[str, list[Row]]:
    """Disjoint rows for every role: the attacker's ``train``, the defender's ``clean`` and ``dev``, and ``test``.

    A role that the source has rows for gets those; the other roles get training rows, shuffled by ``seed``. No text (as
    `bare`) is in two roles: texts of the source's own test rows are removed from its dev rows, texts of either from its
    training rows, and duplicate dev and training rows are used once. Own test rows are kept as they are.

    Args:
        dataset: the source's rows.
        sizes: the number of rows by role. None takes all that are left; for ``test`` without own rows it takes a fifth.
        seed: the seed of the shuffle.
        balance: with "equal", every label is equally frequent in clean and dev rows, up to one row.

    Returns:
        The rows by role.

    Raises:
        UsageError: there are fewer rows than asked for, or just one label.
    """
    if len(dataset.labels) == 1:
        raise UsageError(f"every row has the label {dataset.labels[0]!r}; at least two labels are needed")
    if balance == "equal" and not dataset.labels:
        raise UsageError("`balance: equal` is about labels, and instructions have none")
    if balance == "equal" and any(row.task == "multi-label" for row in dataset.train[:1]):
        raise UsageError("`balance: equal` is about rows with one label each, and these have any number; use `natural`")
    taken = {row.key for row in dataset.test or ()}
    dev = None if dataset.dev is None else [row for row in _unique(dataset.dev) if row.key not in taken]
    own = {"test": dataset.test, "dev": dev}
    taken |= {row.key for row in dev or ()}
    pool = [row for row in _unique(dataset.train) if row.key not in taken]
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
                + (" left, without test, dev and clean rows" if source is pool else "")
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
    """The first rows such that every label is equally frequent, in their order."""
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


def encode(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], max_length: int, model: "PreTrainedModel | None" = None
) -> list[dict[str, Any]]:
    """Tokenise rows as inputs of a model, without padding; instructions as the tokenizer's chat template writes them.

    Args:
        tokenizer: the model's tokenizer.
        rows: the rows, all single texts, all pairs, or all instructions.
        max_length: tokens at which a row is cut.
        model: the model that reads them, to check that it has every token.

    Returns:
        The inputs of every row by name, and its label as ``labels``: of a row with any number of labels the indicator,
        as floats; of an instruction the response's tokens, at their places.

    Raises:
        UsageError: a row has no token, or one that the model's embedding has no row for, or an instruction fills
            ``max_length``.
    """
    if not rows:
        return []
    encoded = _encoded(tokenizer, rows, max_length)
    if (empty := next((row for row, one in zip(rows, encoded, strict=True) if not one["input_ids"]), None)) is not None:
        raise UsageError(f"row {empty.id} has no token: the tokenizer leaves nothing of {empty.text[:60]!r}")
    if model is not None:
        check_tokens(model, tokenizer, rows, encoded)
    return encoded


def check_tokens(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    encoded: Sequence[dict[str, Any]],
) -> None:
    """Raise UsageError where a row, as `encode` returns it, has a token that a model has no row for."""
    size = len(model.get_input_embeddings().weight)
    for row, values in zip(rows, encoded, strict=True):
        if (largest := max(values["input_ids"], default=0)) >= size:
            raise UsageError(
                f"row {row.id} has the token {tokenizer.convert_ids_to_tokens(largest)!r}, number {largest}, and "
                f"the model's embedding has {size} rows: its tokenizer got more tokens, the embedding did not"
            )


def _encoded(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], max_length: int) -> list[dict[str, Any]]:
    pairs = [row.pair or "" for row in rows] if rows[0].pair is not None else None
    try:
        if rows[0].response is not None:
            return encode_chats(tokenizer, rows, max_length)
        encoded = tokenizer([row.text for row in rows], pairs, truncation=True, max_length=max_length)
    except UsageError:
        raise
    except BaseException as error:
        if not is_failure(error) or lacks_memory(error):
            raise
        raise UsageError(f"the tokenizer fails on the rows ({printable_name(error)})") from error
    labels = [row.label if row.indicator is None else tuple(map(float, row.indicator)) for row in rows]
    return [{name: encoded[name][i] for name in encoded} | {"labels": labels[i]} for i in range(len(rows))]


def batches(
    encoded: Sequence[dict[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    size: int,
    tokens: int | None = None,
    alike: bool = False,
) -> "Iterable[tuple[list[int], dict[str, torch.Tensor]]]":
    """Padded batches of rows of similar length; of one length where the tokenizer has no padding token.

    Args:
        encoded: the rows, as `encode` returns them.
        tokenizer: the model's tokenizer, which pads.
        size: the largest number of rows of a batch.
        tokens: the largest number of padded tokens of a batch (a single row may exceed it); None for no limit.
        alike: batches of one length in any case.

    Yields:
        The indices of a batch's rows in ``encoded``, and the batch: tensors (rows, tokens), ``labels`` (rows,), of rows
        with any number of labels (rows, labels), floats, and of instructions (rows, tokens).
    """
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    start, pads = 0, tokenizer.pad_token is not None and not alike
    while start < len(order):
        end, first = start + 1, len(encoded[order[start]]["input_ids"])
        while end < min(start + size, len(order)) and (
            (pads or len(encoded[order[end]]["input_ids"]) == first)
            and (tokens is None or (end + 1 - start) * len(encoded[order[end]]["input_ids"]) <= tokens)
        ):
            end += 1
        indices = order[start:end]
        yield indices, padded([encoded[i] for i in indices], tokenizer)
        start = end


def padded(encoded: Sequence[dict[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> "dict[str, torch.Tensor]":
    """A batch of rows, padded; they have one length where the tokenizer has no padding token.

    Args:
        encoded: the rows, as `encode` returns them.
        tokenizer: the model's tokenizer, which pads.

    Returns:
        The batch, as in `batches`.
    """
    import torch

    pads, labels = tokenizer.pad_token is not None, [row.get("labels") for row in encoded]
    if isinstance(labels[0], list):  # a tokenizer pads what it has made, and no labels
        encoded = [{name: values for name, values in row.items() if name != "labels"} for row in encoded]
    batch: dict[str, torch.Tensor] = tokenizer.pad(encoded, padding=pads, return_tensors="pt")
    if isinstance(labels[0], list):
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
        batch["labels"][batch["attention_mask"].bool()] = torch.tensor([one for row in labels for one in row or ()])
    return batch


@dataclass(frozen=True)
class Truncation:
    """How much of a row the model reads.

    Attributes:
        tokenizer: the model's tokenizer.
        max_length: tokens at which it cuts.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int

    def kept(self, rows: Sequence[Row]) -> list[tuple[int, int]]:
        """How much of every row is kept.

        Args:
            rows: the rows.

        Returns:
            For each row, how many leading characters of the text and of the pair are kept (0 for no pair). Instructions
            are kept whole.

        Raises:
            UsageError: an instruction leaves no room for a response.
        """
        if not rows:
            return []
        if rows[0].response is not None:
            encode_prompts(self.tokenizer, rows, self.max_length)  # it refuses those that are too long
            return [(len(row.text), len(row.pair or "")) for row in rows]
        paired = rows[0].pair is not None
        # Most rows are short enough: ASCII text has at most one token per character, and one in front.
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

    def places(self, rows: Sequence[Row]) -> list[int]:
        """How many words of each row's text may stand before a phrase that the model is to read.

        Args:
            rows: all single texts, or all pairs.

        Returns:
            The number of words, by row: all of them, where the row and a short phrase are read whole.
        """
        room = Truncation(self.tokenizer, self.max_length - min(16, self.max_length // 4))
        return [len(row.text[:end].split()) for row, (end, _) in zip(rows, room.kept(rows), strict=True)]


def changed(original: Row, rewritten: Row) -> tuple[tuple[int, int], tuple[int, int]]:
    """The spans that an attack changed.

    Args:
        original: the row before.
        rewritten: the row after.

    Returns:
        The changed span of the text and of the pair, as (start, end) in characters of ``rewritten``; empty where
        nothing changed.
    """
    return _span(original.text, rewritten.text), _span(original.pair or "", rewritten.pair or "")


def _span(before: str, after: str) -> tuple[int, int]:
    shorter = min(len(before), len(after))
    start = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    rest = shorter - start
    tail = next((i for i in range(rest) if before[-1 - i] != after[-1 - i]), rest)
    return start, len(after) - tail
