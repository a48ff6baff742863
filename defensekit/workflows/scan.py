"""Scan a given model: whole or as an adapter, with clean rows from a file or without."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from defensekit.components import Observer
from defensekit.models.adapter_merge import merged
from defensekit.models.checkpoint import Checkpoint
from defensekit.recipe.resolve import model_folder
from defensekit.scanner import scan as scanner
from defensekit.scanner.clean import read_clean
from defensekit.scanner.result import Scan
from defensekit.utils.files import environment_path, there


def scan(
    base: str | Path,
    suspect: str | Path,
    clean: str | Path | None = None,
    *,
    text: str = "text",
    label: str = "label",
    pair: str | None = None,
    seed: int = 0,
    observers: Sequence[Observer] = (),
) -> Scan:
    """Compare a suspect with its base, and say whether something is suspicious, and where.

    Args:
        base: the model that it was fine-tuned from: a folder, a source's name, or owner/name@revision.
        suspect: the model that is not trusted, likewise; or a PEFT adapter on the base.
        clean: a file of clean rows of its task (CSV, TSV, JSON, JSONL, Parquet); a hundred are enough.
        text: their column with the text.
        label: their column with the label.
        pair: their column with the second text, for pairs.
        seed: the seed of every random draw.
        observers: are notified of progress.

    Returns:
        The measurements and the verdict.

    Raises:
        UsageError: a model or the rows can't be read safely, or the two models are of different architectures.
        DefenseKitError: a weight is NaN or infinite.
    """
    ours, theirs = model_folder(base), model_folder(suspect)
    notes: list[str] = []
    with TemporaryDirectory() as scratch:
        whole = merged(ours, theirs, Path(scratch), notes.append)
        rows = None
        if clean is not None:
            file = there(str(clean), environment_path(clean)) if isinstance(clean, str) else clean
            rows = read_clean(file, Checkpoint(whole), text, label, pair, say=notes.append)
        result = scanner.scan(ours, whole, rows, seed=seed, observers=observers)
    return result.model_copy(update={"suspect": str(theirs), "notes": [*notes, *result.notes]})
