"""Stored predictions, read back."""

from pathlib import Path
from typing import TYPE_CHECKING

from defensekit.components import Predictions, Trial

if TYPE_CHECKING:
    pass


LOGITS = "predictions.safetensors"


def read_predictions(
    folder: Path, target: int | None = None, names: tuple[str, ...] = (), seed: int = 0
) -> Predictions:
    """The predictions that a stage left in a folder, with what metrics know besides."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / LOGITS)
    return Predictions(tensors["logits"], tensors["labels"], target, names, seed)


def clean_trial(predictions: Predictions, value: float) -> Trial:
    """Accuracy on clean rows: all that a rule ever sees."""
    return Trial(value, float((predictions.answers() == predictions.labels).mean()), len(predictions.labels))
