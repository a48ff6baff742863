"""Stored predictions, read back."""

from pathlib import Path

from defensekit.components import Predictions, Trial

LOGITS = "predictions.safetensors"


def read_predictions(
    folder: Path, target: int | None = None, names: tuple[str, ...] = (), seed: int = 0
) -> Predictions:
    """Read the predictions of a stage, and add what metrics need: the target, label names and a seed."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / LOGITS)
    return Predictions(tensors["logits"], tensors["labels"], target, names, seed)


def clean_trial(predictions: Predictions, value: float) -> Trial:
    """The accuracy on clean rows; a rule sees nothing else."""
    return Trial(value, float((predictions.answers() == predictions.labels).mean()), len(predictions.labels))
