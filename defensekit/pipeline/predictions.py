"""Stored predictions, read back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defensekit.components import Predictions, Trial

LOGITS = "predictions.safetensors"


def read_predictions(
    folder: Path, target: int | None = None, names: tuple[str, ...] = (), seed: int = 0
) -> Predictions:
    """Read the predictions of a stage, and add what metrics need: the target, label names and a seed."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / LOGITS)
    return Predictions(tensors["logits"], tensors["labels"], target, names, seed, tensors["ids"])


def read_for(on: str, folders: Mapping[str, Path], **context: Any) -> Predictions | None:
    """What a metric is measured from; None if there are no predictions on its rows.

    Args:
        on: the test rows that the metric is about: ``plain``, ``triggered`` or ``both``.
        folders: of the stages with a model's predictions, by the rows.
        context: what `read_predictions` adds.
    """
    if on == "both":
        if not {"plain", "triggered"} <= folders.keys():
            return None
        triggered, plain = (read_predictions(folders[name], **context) for name in ("triggered", "plain"))
        return triggered.beside(plain)
    return read_predictions(folders[on], **context) if on in folders else None


def clean_trial(predictions: Predictions, value: float) -> Trial:
    """The accuracy on clean rows; a rule sees nothing else."""
    return Trial(value, float((predictions.answers() == predictions.labels).mean()), len(predictions.labels))
