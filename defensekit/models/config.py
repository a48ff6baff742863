"""What a model's config says: its labels, and how many tokens it has positions for."""

from collections.abc import Sequence
from dataclasses import replace

from defensekit.models.checkpoint import Checkpoint
from defensekit.text import Dataset, Row
from defensekit.utils.errors import UsageError, listing, nearest


def positions(model: Checkpoint) -> int | None:
    """How many tokens a model has positions for; None where there is no last one."""
    if model.config.get("relative_attention"):
        return None
    for key in ("max_position_embeddings", "n_positions"):
        limit = model.config.get(key)
        if isinstance(limit, int):
            # RoBERTa counts positions from behind the padding token's number.
            return limit - (2 if "roberta" in str(model.config.get("model_type")) else 0)
    return None


def label_count(model: Checkpoint) -> int:
    """How many labels a classifier's config counts, named or not."""
    named, count = model.config.get("id2label"), model.config.get("num_labels")
    if type(count) is int and count > 0:
        return count  # transformers passes over names that are not as many
    if isinstance(named, dict) and named:
        return len(named)
    from transformers import CONFIG_MAPPING

    # transformers leaves out what is as its class has it: 2 as a rule, of BART 3.
    kind = str(model.config.get("model_type"))
    try:
        return int(CONFIG_MAPPING[kind]().num_labels) if kind in CONFIG_MAPPING else 2
    except Exception as error:  # a few classes are no classifier's, and can't be made from nothing
        raise UsageError(
            f"{model.folder / 'config.json'}: how many labels {kind!r} has is not known; expected `num_labels` or "
            "`id2label`"
        ) from error


def label_names(model: Checkpoint) -> list[str]:
    """The names of a classifier's labels, by their numbers, as its config has them.

    Raises:
        UsageError: the config does not number them from 0.
    """
    count, names = label_count(model), model.config.get("id2label")
    if not names or (isinstance(names, dict) and len(names) != count):
        names = {str(i): f"LABEL_{i}" for i in range(count)}
    try:
        return [str(names[str(i)]) for i in range(count)]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{model.folder / 'config.json'}: `id2label` does not number the labels from 0") from error


def match_labels(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """The model's numbers for the data's labels: by name, or, where none is a name of the model's, by number.

    Raises:
        UsageError: a label is neither.
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
    """A data set with a model's labels, and its numbers for them.

    Args:
        dataset: with labels of its own.
        labels: the model's, by number.

    Returns:
        The same rows.

    Raises:
        UsageError: as `match_labels`.
    """
    numbers = match_labels(dataset.labels, labels)

    def renumbered(rows: list[Row]) -> list[Row]:
        return [replace(row, label=numbers[row.label]) for row in rows]

    return replace(
        dataset,
        labels=tuple(labels),
        train=renumbered(dataset.train),
        dev=None if dataset.dev is None else renumbered(dataset.dev),
        test=None if dataset.test is None else renumbered(dataset.test),
    )
