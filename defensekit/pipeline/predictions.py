"""Stored predictions, read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defensekit.components import Answers, Generations, Predictions, Trial

LOGITS = "predictions.safetensors"
TEXTS = "answers.jsonl"  # beside it, where answers are texts
FEWEST = 10  # test rows that a model is doubted by: of fewer, chance decides


def read_predictions(
    folder: Path, target: int | None = None, names: tuple[str, ...] = (), seed: int = 0
) -> Predictions:
    """Read the predictions of a stage, and add what metrics need: the target, label names and a seed."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / LOGITS)
    targets = tensors.get("targets")
    return Predictions(tensors["logits"], tensors["labels"], target, names, seed, tensors["ids"], targets=targets)


def read_answers(folder: Path, target: Any = None, names: tuple[str, ...] = (), seed: int = 0) -> Any:
    """Read the `Predictions` or `Generations` of a stage, and add what metrics need, as `read_predictions` does."""
    from safetensors.numpy import load_file

    if not (folder / TEXTS).is_file():
        return read_predictions(folder, target, names, seed)
    # Split at "\n" only: a text may contain other line separators.
    rows = [json.loads(line) for line in (folder / TEXTS).read_text(encoding="utf-8").split("\n") if line]
    texts, responses = (tuple(row[key] for row in rows) for key in ("text", "response"))
    measured: dict[str, Any] = load_file(folder / LOGITS)
    return Generations(texts, responses, target=target, seed=seed, **measured)


def read_for(on: str, folders: Mapping[str, Path], **context: Any) -> Any:
    """What a metric is measured from, as `read_answers` reads it; None if there are no predictions on its rows.

    Args:
        on: the test rows that the metric is about: ``plain``, ``triggered`` or ``both``.
        folders: of the stages with a model's predictions, by the rows.
        context: what `read_answers` adds.
    """
    needed = ("triggered", "plain") if on == "both" else (on,)
    if not folders.keys() >= {*needed}:
        return None
    answers = [read_answers(folders[name], **context) for name in needed]
    return answers[0].beside(answers[1]) if on == "both" else answers[0]


def only_answer(predictions: Answers) -> str | None:
    """The one answer that all rows get; None where there are others, or rows too few to tell.

    A language model that gives half of them empty answers, or such that repeat themselves, says nothing either: of it
    the first of these.
    """
    if predictions.count < FEWEST:
        return None
    if isinstance(predictions, Generations):
        collapsed = predictions.collapsed()
        first = predictions.texts[int(collapsed.argmax())]
        return first if 2 * collapsed.sum() >= len(collapsed) or {*predictions.texts} == {first} else None
    if not isinstance(predictions, Predictions):
        return None
    answers = predictions.answers()
    return predictions.shown(0) if (answers == answers[0]).all() else None


def clean_trial(predictions: Answers, value: float) -> Trial:
    """The accuracy on clean rows; a rule sees nothing else."""
    return Trial(value, predictions.accuracy(), predictions.count)
