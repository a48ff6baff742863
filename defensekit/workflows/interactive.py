"""The steps of a defense, one call each: the same code as in a run, without a store.

    pair = load_pair("minilm", "./suspect")
    data = load_data({"name": "reviews.csv", "text": "review"}, pair=pair, clean=256, test=600)
    curvature = estimate(pair, "fisher", data.clean)
    scores = score(pair, "diffusion", curvature)
    selection = select(scores, {"name": "fraction", "fraction": 0.6})
    purify(pair, selection, ["reset", {"name": "fine-tune", "epochs": 3}], data.clean, "./purified")
    evaluate("./purified", data.test)

A component is its name, a mapping with its name and parameters as in YAML, or an object of your own class. With the
same seed, rows and parameters the numbers are those of a run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.components import (
    DatasetSource,
    Estimator,
    Measured,
    Metric,
    Predictions,
    Purifier,
    Scorer,
    Selector,
    call_component,
    refuse_unsuited,
    tensors,
)
from defensekit.defense import estimation, purification, scoring, selection
from defensekit.models import answers, inference, loading
from defensekit.models.checkpoint import CAUSAL, Checkpoint
from defensekit.models.config import label_names, refuse_contradiction, relabelled
from defensekit.models.pair import Pair
from defensekit.models.skeleton import task_of
from defensekit.recipe.resolve import Spec, called, component, dataset_source, model_folder, several, written
from defensekit.result.schema import Histogram, Result
from defensekit.text import Row, label_number, split
from defensekit.training import Precision, device_type
from defensekit.utils.errors import UsageError
from defensekit.utils.html import html_table
from defensekit.utils.seeds import Seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# -- models and data ---------------------------------------------------------------------------------------------------


def load_pair(base: Spec | Path, suspect: str | Path) -> Pair:
    """Load a base and the suspect that was fine-tuned from it.

    Args:
        base: a folder, a source's name, or ``owner/name@revision``.
        suspect: likewise.

    Returns:
        The pair, its tensors aligned.

    Raises:
        UsageError: one of them is missing, can't be read safely, or does not match the other.
    """
    pair = Pair(Checkpoint(model_folder(base)), Checkpoint(model_folder(suspect)))
    pair.check()  # a misfit is reported now and not at first use
    return pair


@dataclass(frozen=True)
class Data:
    """Disjoint rows for fitting, choosing and testing; ``labels`` are the names behind their label numbers."""

    labels: tuple[str, ...]
    clean: list[Row] = field(repr=False)
    dev: list[Row] = field(repr=False)
    test: list[Row] = field(repr=False)
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        roles = {"clean": self.clean, "dev": self.dev, "test": self.test}
        rows = [
            [role, len(rows), *(sum(row.has(i) for row in rows) for i in range(len(self.labels)))]
            for role, rows in roles.items()
        ]
        return html_table("data", ["role", "rows", *self.labels], rows, " ".join(self.notes))


def load_data(
    source: Spec | Path,
    *,
    pair: Pair | None = None,
    clean: int = 256,
    dev: int = 0,
    test: int | None = None,
    seed: int = 0,
) -> Data:
    """Load labelled rows of a file, a source or a hub's data set, split as in a run.

    Args:
        source: as in a recipe: a name or path, or a mapping with ``name`` and ``text``, ``label``, ``pair``, ...
        pair: the rows' labels are matched with the labels of its suspect.
        clean: the number of rows to fit.
        dev: the number of rows to choose by.
        test: the number of rows to test; None takes the source's own test rows, or a fifth.
        seed: decides which row goes where.

    Returns:
        The rows of each role, with label numbers.

    Raises:
        UsageError: the rows are not what was expected.
    """
    read = component(DatasetSource, dataset_source(written(source)))
    dataset = call_component(read, read.load)
    if pair and task_of(pair.suspect) != CAUSAL:
        dataset = relabelled(dataset, label_names(pair.suspect))
        refuse_contradiction(pair.suspect, answers.several(dataset.train))
    for role, size in (("clean", clean), ("dev", dev), ("test", test or 0)):
        if size < 0:
            raise UsageError(f"{role}={size}: expected a number of rows")
    sizes = {"train": 0, "clean": clean, "dev": dev, "test": test}
    rows = split(dataset, sizes, Seeds(seed).data)
    return Data(dataset.labels, rows["clean"], rows["dev"], rows["test"], tuple(dataset.notes))


# -- the defense -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """Measured statistics: ``tensors[statistic][name]`` by the pair's names, and plain ``facts``."""

    estimator: str
    tensors: "dict[str, dict[str, Tensor]]" = field(repr=False)
    facts: dict[str, Any]

    def _repr_html_(self) -> str:
        facts = [(name, f"{value:.4g}" if isinstance(value, float) else value) for name, value in self.facts.items()]
        return html_table(f"{self.estimator}: {', '.join(self.tensors)}", ["fact", "value"], facts)


def estimate(
    pair: Pair, estimator: Spec | Estimator, rows: Sequence[Row], *, max_length: int = 128, seed: int = 0
) -> Statistics:
    """Measure statistics per parameter on clean rows.

    Args:
        pair: base and suspect.
        estimator: an estimator's name, a mapping as in YAML, or an object.
        rows: clean rows.
        max_length: tokens per row; longer rows are cut.
        seed: as a run's.

    Returns:
        The statistics, for `score`.

    Raises:
        UsageError: there are no rows, or no such estimator.
        DefenseKitError: the estimator failed, or its tensors do not match the model.
    """
    built = component(Estimator, estimator)
    _check_rows(rows)
    measured = estimation.estimate(
        pair, built, rows, max_length=max_length, seed=Seeds(seed).statistics, report=_no_report
    )
    return Statistics(called(estimator), measured.statistics, measured.facts)


@dataclass(frozen=True)
class PairScores:
    """A score for every dimension in scope: ``tensors[name].score`` and ``.eligible``, computed at each access.

    Higher scores are selected first.
    """

    scorer: str
    pair: Pair = field(repr=False)
    tensors: scoring.Computed = field(repr=False)

    def histogram(self) -> Histogram:
        """The histogram of the eligible dimensions' scores."""
        nothing = selection.TensorSelection(self.tensors, {name: tensors.Cut(math.inf) for name in self.tensors})
        return Histogram(**selection.summary(nothing)["scores"])

    def _repr_html_(self) -> str:
        return plot(self)._repr_html_()


def score(pair: Pair, scorer: Spec | Scorer, statistics: Statistics | None = None, *, seed: int = 0) -> PairScores:
    """Score every dimension in scope.

    Args:
        pair: base and suspect.
        scorer: a scorer's name, a mapping as in YAML, or an object.
        statistics: what `estimate` measured, if the scorer needs it.
        seed: as a run's.

    Returns:
        The scores, for `select`.

    Raises:
        UsageError: the scorer needs a statistic that was not measured.
        DefenseKitError: a score has the wrong shape or is not finite.
    """
    built = component(Scorer, scorer)
    tensors = statistics.tensors if statistics else {}
    if missing := built.needs - tensors.keys():
        raise UsageError(f"the scorer {called(scorer)!r} needs {', '.join(sorted(missing))}: estimate it first")
    readers = {name: tensors[name].get for name in sorted(tensors)}
    return PairScores(called(scorer), pair, scoring.score_pair(pair, built, readers, Seeds(seed).purify))


@dataclass(frozen=True)
class Selection:
    """Selected dimensions: ``tensors[name]`` is bool, or soft in [0, 1]; ``facts`` count them as a result does."""

    selector: str
    scores: PairScores = field(repr=False)
    tensors: selection.TensorSelection = field(repr=False)
    facts: dict[str, Any] = field(repr=False)

    @property
    def of_eligible(self) -> float:
        """The share of the eligible dimensions that is selected."""
        return float(self.facts["selected"] / self.facts["eligible"]) if self.facts["eligible"] else 0.0

    def histogram(self) -> Histogram:
        """The histogram of the scores, with the selected ones among them."""
        return Histogram(**self.facts["scores"])

    def _repr_html_(self) -> str:
        counts = [(name, f"{self.facts[name]:,}") for name in ("dimensions", "in_scope", "eligible", "selected")]
        note = f"{self.of_eligible:.1%} of the eligible dimensions"
        return (
            html_table(f"selection by {self.selector}", ["dimensions", "count"], counts, note)
            + plot(self)._repr_html_()
        )


def select(scores: PairScores, selector: Spec | Selector) -> Selection:
    """Select dimensions by score.

    Args:
        scores: what `score` gave.
        selector: a selector's name, a mapping as in YAML, or an object.

    Returns:
        The selection, for `purify`.

    Raises:
        DefenseKitError: the selector broke its contract.
    """
    built = component(Selector, selector)
    tensors = selection.select(scores.tensors, built)
    return Selection(called(selector), scores, tensors, selection.summary(tensors))


def purify(
    pair: Pair,
    selection: Selection | None,
    steps: Spec | Purifier | Sequence[Spec | Purifier],
    rows: Sequence[Row],
    target: str | Path,
    *,
    max_length: int = 128,
    precision: Precision = "float32",
    seed: int = 0,
) -> Path:
    """Write the suspect, purified step by step, into a new folder that loads wherever the suspect did.

    Args:
        pair: base and suspect.
        selection: what `select` gave; None for steps that only train.
        steps: one purifier or several, in order: names, mappings as in YAML, or objects.
        rows: clean rows, for steps that train.
        target: the folder; it must be empty or not exist.
        max_length: tokens per row; longer rows are cut.
        precision: of training, float32 or bfloat16.
        seed: as a run's.

    Returns:
        The folder.

    Raises:
        UsageError: the folder exists and is not empty, or the selection is of another pair.
        DefenseKitError: a step failed or broke its contract.
    """
    folder = Path(target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} already exists; name a new folder")
    if selection and selection.scores.pair != pair:
        raise UsageError(f"the selection is of {selection.scores.pair!r}, not of {pair!r}")
    purification.purify(
        pair,
        selection.tensors if selection else None,
        [component(Purifier, step) for step in several(steps)],
        rows,
        folder,
        max_length=max_length,
        precision=precision,
        seed=Seeds(seed).purify,
        report=_no_report,
        search_seed=Seeds(seed).search,
    )
    return folder


# -- evaluation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to rows, and their metrics.

    Attributes:
        model: the name of the model's folder.
        predictions: the answers, in the order of the rows: ``logits`` (rows, labels) in float32, the true ``labels``,
            and the rows' ``ids``, to measure anything else by.
        metrics: every metric with its 95 % interval, by name.
    """

    model: str
    predictions: Predictions = field(repr=False)
    metrics: dict[str, Measured]

    def _repr_html_(self) -> str:
        rows = [
            (name.upper(), f"{m.value:.3f}", f"{m.low:.3f} to {m.high:.3f}", m.rows) for name, m in self.metrics.items()
        ]
        return html_table(self.model, ["metric", "value", "95 % interval", "rows"], rows)


def evaluate(
    model: str | Path | Checkpoint,
    rows: Sequence[Row],
    metrics: Spec | Metric | Sequence[Spec | Metric] = ("acc",),
    *,
    target: str | int | None = None,
    plain: Sequence[Row] | None = None,
    max_length: int = 128,
    precision: Precision = "float32",
    seed: int = 0,
) -> Evaluation:
    """Ask a model about rows, and measure its answers.

    Args:
        model: a folder, or one side of a pair.
        rows: with the model's own label numbers, as `load_data` gives them for a pair.
        metrics: one metric or several: names, mappings as in YAML, or objects.
        target: the attacker's label by name or number; metrics of a backdoor need it.
        plain: where ``rows`` carry a trigger, rows without; metrics of both, such as excess-asr, need them, and compare
            row by row where their ids are the same.
        max_length: tokens per row; longer rows are cut.
        precision: of the answers, float32 or bfloat16.
        seed: of the metrics' intervals.

    Returns:
        The answers and the metrics.

    Raises:
        UsageError: there are no rows, or a metric needs a target or ``plain`` rows.
    """
    measured = {called(spec): component(Metric, spec) for spec in several(metrics)}
    import numpy as np

    for name, metric in measured.items():
        if metric.about == "backdoor" and target is None:
            raise UsageError(f"the metric {name!r} needs `target=`, the attacker's label")
        if metric.on == "both" and plain is None:
            raise UsageError(f"the metric {name!r} needs `plain=`, rows without the trigger")
    _check_rows(rows)
    if plain is not None:
        _check_rows(plain)
    for metric in measured.values():
        refuse_unsuited(metric, rows)
    folder = model.folder if isinstance(model, Checkpoint) else model_folder(model)
    if task_of(Checkpoint(folder)) == CAUSAL:
        raise UsageError(f"{folder} is a {CAUSAL}; expected a classifier")
    loaded, tokenizer = loading.load(folder, "model")
    labels = [str(loaded.config.id2label[i]) for i in range(loaded.config.num_labels)]
    loaded.to(device_type())
    aim = None if target is None else label_number(target, labels)

    def answers_to(asked: Sequence[Row]) -> Predictions:
        logits = inference.predict(loaded, tokenizer, asked, max_length=max_length, precision=precision).numpy()
        truth, ids = np.array([row.answer for row in asked]), np.array([row.id for row in asked])
        return Predictions(logits, truth, aim, tuple(labels), Seeds(seed).metrics, ids)

    predictions = answers_to(rows)
    if plain is not None:
        predictions = predictions.beside(answers_to(plain))
    return Evaluation(
        folder.name, predictions, {n: call_component(m, m.measure, predictions) for n, m in measured.items()}
    )


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure that shows itself in a notebook."""

    figure: "Figure"

    def save(self, path: str | Path) -> None:
        """Write it as PNG, SVG or PDF, by the path's suffix."""
        self.figure.savefig(path, dpi=150)

    def _repr_html_(self) -> str:
        from defensekit.result.plots import image

        return f"<img alt='plot' src='{image(self.figure)}'>"


def plot(what: Result | PairScores | Selection) -> Plot:
    """Plot the curve of a result over the chosen parameter, or the histogram of scores.

    Args:
        what: a result, scores, or a selection.

    Raises:
        UsageError: it is something else.
        ValueError: nothing was chosen in the run.
    """
    from defensekit.result import plots

    if not isinstance(what, Result | PairScores | Selection):
        raise UsageError(f"expected a result, scores or a selection, got {type(what).__name__}")
    if isinstance(what, Result):
        return Plot(plots.curve(what))
    scorer = what.scorer if isinstance(what, PairScores) else what.scores.scorer
    return Plot(plots.scores(what.histogram(), scorer))


def _no_report(done: int, total: int) -> None:
    """Report no progress."""


def _check_rows(rows: Sequence[Row]) -> None:
    if not rows:
        raise UsageError("there are no rows")
