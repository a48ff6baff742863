"""A model's labels and number of positions, from its config."""

import re
from collections.abc import Sequence
from dataclasses import replace

from defensekit.models.checkpoint import Checkpoint
from defensekit.text import Dataset, Row
from defensekit.utils.errors import UsageError, listing, nearest, printable_name

_PADDED = re.compile(r"roberta|camembert|mpnet|longformer|data2vec-text|ibert|xmod|luke|markuplm|layoutlmv3|lilt|^esm$")


# What a config calls the loss of rows with one label each, and of rows with lists of labels.
LOSSES = ("single_label_classification", "multi_label_classification")


def positions(model: Checkpoint) -> int | None:
    """The largest number of tokens that a model can read; None where there is no limit."""
    if model.config.get("relative_attention"):
        return None
    for key in ("max_position_embeddings", "n_positions"):
        limit = model.config.get(key)
        if isinstance(limit, int):
            kind, padding = str(model.config.get("model_type")), model.config.get("pad_token_id", 1)
            if not _PADDED.search(kind) or type(padding) is not int:
                return limit
            # These number positions from the padding token's id + 1; MPNet's is 1 whatever its config says.
            return limit - (1 if kind == "mpnet" else padding) - 1
    return None


def label_count(model: Checkpoint) -> int:
    """The number of labels of a classifier, named or not.

    Raises:
        UsageError: neither the config nor transformers' default for its class says it.
    """
    named, count = model.config.get("id2label"), model.config.get("num_labels")
    if type(count) is int and count > 0:
        return count  # transformers ignores names if their number differs
    if isinstance(named, dict) and named:
        return len(named)
    from transformers import CONFIG_MAPPING

    # transformers does not write a value that is its class's default: usually 2, for BART 3.
    kind = str(model.config.get("model_type"))
    try:
        return int(CONFIG_MAPPING[kind]().num_labels) if kind in CONFIG_MAPPING else 2
    except Exception as error:  # a few classes have no labels, or need arguments
        raise UsageError(
            f"{model.folder / 'config.json'}: how many labels {kind!r} has is not known; expected `num_labels` or "
            "`id2label`"
        ) from error


def label_names(model: Checkpoint) -> list[str]:
    """The names of a classifier's labels in the order of their numbers, from its config.

    Raises:
        UsageError: the config does not number them from 0, or calls two alike.
    """
    count, names = label_count(model), model.config.get("id2label")
    if not names or (isinstance(names, dict) and len(names) != count):
        names = {str(i): f"LABEL_{i}" for i in range(count)}
    try:
        labels = [str(names[str(i)]) for i in range(count)]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{model.folder / 'config.json'}: `id2label` does not number the labels from 0") from error
    if len(set(labels)) < count:
        twice = printable_name(next(name for i, name in enumerate(labels) if name in labels[:i]))
        raise UsageError(f"{model.folder / 'config.json'}: `id2label` calls several labels {twice!r}")
    return labels


def check_labels(model: Checkpoint) -> None:
    """Refuse a head with one output where answers are needed.

    Raises:
        UsageError: the model is a regression, or a classifier with one label.
    """
    if label_count(model) == 1:
        raise UsageError(
            f"{model.folder} has one output (a regression, or a classifier with one label), so that no row can have "
            "another answer; expected two labels or more. Without clean rows it can be scanned, and purified by a reset"
        )


def contradiction(model: Checkpoint, each: bool) -> str | None:
    """What a config says of a classifier's loss and the rows contradict, as a sentence; None where they agree.

    The rows decide. Whoever made the model wrote its config; where it says nothing of the loss, nothing contradicts.
    """
    kind = model.config.get("problem_type")
    if kind in (None, LOSSES[each]):
        return None
    have = "lists of labels" if each else "one label each"
    return f"config.json sets `problem_type` to {kind!r}, and the clean rows have {have}"


def refuse_contradiction(model: Checkpoint, each: bool) -> None:
    """Refuse rows for another loss than the config names.

    Raises:
        UsageError: the config and the rows contradict each other.
    """
    if reason := contradiction(model, each):
        raise UsageError(
            f"{model.folder}: {reason}; expected lists of labels for {LOSSES[1]!r}, one label "
            f"in each row for {LOSSES[0]!r}"
        )


def match_labels(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """The model's numbers for the data's labels: matched by name, or by number where no name matches.

    Raises:
        UsageError: a label matches neither way.
    """
    if not set(ours) & set(theirs) and set(ours) <= {str(i) for i in range(len(theirs))}:
        return [int(label) for label in ours]
    for label in ours:
        if label not in theirs:
            numbers = listing(str(i) for i in range(len(theirs)))
            raise UsageError(
                f"the model has no label {label!r}.{nearest(label, theirs)} (it has: {listing(theirs)}; rows may have "
                f"their numbers instead, {numbers}, or `id2label` in its config.json other names)"
            )
    return [theirs.index(label) for label in ours]


def relabelled(dataset: Dataset, labels: Sequence[str]) -> Dataset:
    """A data set with the labels and label numbers of a model.

    Args:
        dataset: with labels of its own.
        labels: the model's labels, in the order of their numbers.

    Returns:
        The same rows, renumbered.

    Raises:
        UsageError: as `match_labels`; or the rows are instructions.
    """
    if not dataset.labels:
        raise UsageError(f"the rows are instructions, and the model answers with labels: {listing(labels)}")
    numbers = match_labels(dataset.labels, labels)

    def renumbered(rows: list[Row]) -> list[Row]:
        return [_renumbered(row, numbers, len(labels)) for row in rows]

    return replace(
        dataset,
        labels=tuple(labels),
        train=renumbered(dataset.train),
        dev=None if dataset.dev is None else renumbered(dataset.dev),
        test=None if dataset.test is None else renumbered(dataset.test),
    )


def _renumbered(row: Row, numbers: Sequence[int], count: int) -> Row:
    if row.indicator is None:
        return replace(row, label=numbers[row.label])
    applies = {number for number, one in zip(numbers, row.indicator, strict=True) if one}
    return replace(row, indicator=tuple(int(number in applies) for number in range(count)))
