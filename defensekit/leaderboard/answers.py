"""Answers as a row keeps them: which label each test row was given.

Logits hardly pack, and no machine computes the last digits of another's: what is compared of two runs is what
they answered.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.components import Measured, Metric, Predictions
from defensekit.pipeline.predictions import read_predictions
from defensekit.utils.errors import DefenseKitError, listing, one_line

if TYPE_CHECKING:
    import numpy as np

FOLDER, SUFFIX = "answers", ".safetensors"


def answers_file(key: str) -> str:
    """The file, within a row, of the answers of a stage."""
    return f"{FOLDER}/{key}{SUFFIX}"


def packed_answers(folder: Path) -> bytes:
    """What a row keeps of a stage's predictions: 1 for every label that was answered, as bytes (rows, labels)."""
    import numpy as np
    from safetensors.numpy import save

    predictions = read_predictions(folder)
    given = np.eye(predictions.logits.shape[1], dtype=np.uint8)[predictions.answers()]
    about = {"labels": predictions.labels, "ids": predictions.ids, "targets": predictions.targets}
    kept = {name: column for name, column in about.items() if column is not None}
    return save({"answers": given, **kept})


def parse_answers(data: bytes, target: int | None = None, names: tuple[str, ...] = (), seed: int = 0) -> Predictions:
    """Predictions of which nothing but the answers is known, as `read_predictions` gives them: logits of 1 and 0.

    Raises:
        DefenseKitError: they are none.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, Any] = load(data)
    except SafetensorError as error:
        raise DefenseKitError(f"answers can't be read ({one_line(error)})") from error
    if tensors.keys() - {"targets"} != {"answers", "labels", "ids"}:
        raise DefenseKitError(
            f"answers have {listing(sorted(tensors))}, expected answers, labels and ids, and perhaps targets"
        )
    logits, targets = tensors["answers"].astype(np.float32), tensors.get("targets")
    return Predictions(logits, tensors["labels"], target, names, seed, tensors["ids"], targets=targets)


def needs_more(metric: Metric) -> bool:
    """Whether a metric reads more than answers: it measures something else where logits are 1 and 0."""
    import numpy as np

    rng, names = np.random.default_rng(0), ("a", "b", "c")
    labels, ids = rng.integers(len(names), size=64), np.arange(64)
    drawn = rng.normal(size=(2, len(ids), len(names)))

    def measured(logits: "np.ndarray") -> Measured:
        triggered, plain = (Predictions(one, labels, 0, names, 0, ids) for one in logits)
        return metric.measure(triggered.beside(plain) if metric.on == "both" else triggered)

    return measured(drawn) != measured(np.eye(len(names))[drawn.argmax(-1)])


def malformed(predictions: Predictions) -> str | None:
    """What is wrong with a row's answers, if anything is."""
    import numpy as np

    answers, labels, ids = predictions.logits, predictions.labels, predictions.ids
    if answers.ndim != 2 or answers.shape[1] < 2 or not np.isin(answers, (0, 1)).all() or (answers.sum(1) != 1).any():
        return "expected one label of two or more per row, marked with 1 among 0"
    if labels.shape != (len(answers),) or ids is None or ids.shape != labels.shape:
        return "expected a label and a number per row"
    columns = [labels, ids, *([] if predictions.targets is None else [predictions.targets])]
    if columns[-1].shape != labels.shape or any(column.dtype.kind != "i" for column in columns):
        return "expected whole numbers as labels and targets, one a row"
    return None
