"""A defense of training data: rows scored by a filter, held to its contract, and taken away."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from defensekit import training
from defensekit.components import Filter, FilterContext, RowFeatures, call_component, component_error, offering
from defensekit.models import inference, loading
from defensekit.text import Row
from defensekit.training import Precision, TrainingSettings

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ARRAYS = "arrays.safetensors"  # what is known of rows, in the order of the rows


@dataclass(frozen=True)
class Reading:
    """How models read rows."""

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    precision: Precision

    def features(
        self,
        model: "PreTrainedModel",
        rows: Sequence[Row],
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> RowFeatures:
        """What a classifier makes of rows."""
        read = inference.features(
            model.to(training.device_type()),
            self.tokenizer,
            rows,
            max_length=self.max_length,
            precision=self.precision,
            report=report,
        )
        return RowFeatures(*(tensor.numpy() for tensor in read))


def context(
    component: Filter,
    base: Path,
    suspect: Path,
    *,
    rows: Sequence[Row],
    features: RowFeatures,
    clean: Sequence[Row],
    labels: tuple[str, ...],
    settings: TrainingSettings,
    max_length: int,
    precision: Precision,
    seed: int,
    report: Callable[[int, int], None],
) -> FilterContext:
    """What a filter may use. Rows lose their numbers: those of rows that an attack added are below 0."""
    _, tokenizer = loading.load(suspect, "suspect")
    reading = Reading(tokenizer, max_length, precision)
    return FilterContext(
        rows=[replace(row, id=place) for place, row in enumerate(rows)],
        features=features,
        clean=clean,
        labels=labels,
        model=offering(component, partial(_model, base, suspect, labels, seed), "suspect", "base"),
        tokenizer=tokenizer,
        read=reading.features,
        settings=settings,
        max_length=max_length,
        precision=precision,
        seed=seed,
        report=report,
    )


def _model(
    base: Path, suspect: Path, labels: tuple[str, ...], seed: int, which: Literal["suspect", "base"]
) -> "PreTrainedModel":
    with training.forked_random(seed):
        model, _ = loading.load(*((suspect, which) if which == "suspect" else (base, which, labels)))
    return model.to(training.device_type())


def score(component: Filter, given: FilterContext) -> "np.ndarray":
    """The score of every row.

    Raises:
        DefenseKitError: there is none for some row, or one is NaN or infinite.
    """
    import numpy as np

    with training.forked_random(given.seed):
        scores = np.asarray(call_component(component, component.score, given), dtype=np.float64)
    if scores.shape != (len(given.rows),):
        raise component_error(component, f"gave scores of shape {list(scores.shape)}, expected [{len(given.rows)}]")
    if not np.isfinite(scores).all():
        raise component_error(component, f"gave row {int(np.argmin(np.isfinite(scores)))} a score of NaN or infinity")
    return scores


def take(component: Filter, scores: "np.ndarray", labels: Sequence[int]) -> "np.ndarray":
    """Which rows are taken, (rows,); of rows with the same score, the first.

    Raises:
        DefenseKitError: none is left.
    """
    import numpy as np

    if component.fraction is None:
        taken: np.ndarray = scores > component.threshold
    else:
        taken = np.zeros(len(scores), dtype=bool)
        groups = np.asarray(labels) if component.scope == "label" else np.zeros(len(scores))
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            ranked = members[np.argsort(-scores[members], kind="stable")]
            taken[ranked[: round(component.fraction * len(members))]] = True
    if taken.all():
        raise component_error(component, "takes every row: there is nothing left to train on")
    return taken


def found(scores: "np.ndarray", taken: "np.ndarray", poisoned: Sequence[bool]) -> dict[str, Any]:
    """How well poisoned rows were found: counts, precision, recall and the area under the ROC curve.

    None is what nothing is known of: precision where nothing was taken, the others where nothing is poisoned.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score

    truth = np.asarray(poisoned, dtype=bool)
    hits, several = int((taken & truth).sum()), 0 < truth.sum() < len(truth)
    return {
        "rows": len(truth),
        "taken": int(taken.sum()),
        "poisoned": int(truth.sum()),
        "precision": hits / int(taken.sum()) if taken.any() else None,
        "recall": hits / int(truth.sum()) if truth.any() else None,
        "auroc": float(roc_auc_score(truth, scores)) if several else None,
    }


def write(folder: Path, arrays: "Mapping[str, np.ndarray]") -> None:
    """Write what is known of rows, an array for each thing."""
    from safetensors.numpy import save_file

    save_file(dict(arrays), folder / ARRAYS)


def read(folder: Path) -> "dict[str, np.ndarray]":
    """Read what `write` wrote."""
    from safetensors.numpy import load_file

    arrays: dict[str, np.ndarray] = load_file(folder / ARRAYS)
    return arrays
