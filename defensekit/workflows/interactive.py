"""The pieces of a defense, by hand: the same code that a run calls, with nothing kept and nothing hidden.

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
    tensors,
)
from defensekit.defense import estimation, purification, scoring, selection
from defensekit.models import inference, loading
from defensekit.models.checkpoint import CAUSAL, Checkpoint
from defensekit.models.config import label_names, relabelled
from defensekit.models.pair import Pair
from defensekit.recipe.resolve import Spec, called, component, dataset_source, model_folder, several
from defensekit.result.schema import Histogram, Result
from defensekit.text import Row, label_number, split
from defensekit.training import Precision, device_type
from defensekit.utils.errors import UsageError
from defensekit.utils.html import html_table
from defensekit.utils.seeds import Seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# -- what there is -----------------------------------------------------------------------------------------------------


def load_pair(base: Spec | Path, suspect: str | Path) -> Pair:
    """A base and the suspect that was fine-tuned from it: folders, a source's name, or ``owner/name@revision``.

    Raises:
        UsageError: one of them is not there, can't be read safely, or they don't fit each other.
    """
    pair = Pair(Checkpoint(model_folder(base)), Checkpoint(model_folder(suspect)))
    pair.scope  # noqa: B018  # misfits are told now and not at first use
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
            [role, len(rows), *(sum(row.label == i for row in rows) for i in range(len(self.labels)))]
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
    """Labelled rows of a file, a source or a hub's data set, split as a run splits them.

    Args:
        source: as in a recipe: a name or path, or a mapping with ``name`` and ``text``, ``label``, ``pair``, ...
        pair: whose labels the rows' labels are matched with.
        clean, dev, test: rows for each role; ``test=None`` takes what a source has of its own, or a fifth.
        seed: decides who gets which row.

    Raises:
        UsageError: the rows are not what was expected.
    """
    read = component(DatasetSource, dataset_source(str(source) if isinstance(source, Path) else source))
    dataset = call_component(read, read.load)
    if pair and pair.suspect.task != CAUSAL:
        dataset = relabelled(dataset, label_names(pair.suspect))
    for role, size in (("clean", clean), ("dev", dev), ("test", test or 0)):
        if size < 0:
            raise UsageError(f"{role}={size}: expected a number of rows")
    sizes = {"train": 0, "clean": clean, "dev": dev, "test": test}
    made = split(dataset, sizes, Seeds(seed).data)
    return Data(dataset.labels, made["clean"], made["dev"], made["test"], tuple(dataset.notes))


# -- the defense -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """What an estimator measured: ``tensors[statistic][name]`` by the pair's names, and plain ``facts``."""

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

    Raises:
        DefenseKitError: the estimator failed, or gave what does not fit the model.
    """
    made = component(Estimator, estimator)
    _some(rows)
    found = estimation.estimate(pair, made, rows, max_length=max_length, seed=Seeds(seed).statistics, report=_no_report)
    return Statistics(called(estimator), found.statistics, found.facts)


@dataclass(frozen=True)
class Scores:
    """A score for every dimension in scope; ``tensors[name].score`` and ``.eligible``, computed when they are looked
    at. Higher is taken first."""

    scorer: str
    pair: Pair = field(repr=False)
    tensors: scoring.Computed = field(repr=False)

    def histogram(self) -> Histogram:
        """How the scores are spread over the eligible dimensions."""
        nothing = selection.Selection(self.tensors, {name: tensors.Cut(math.inf) for name in self.tensors})
        return Histogram(**selection.summary(nothing)["scores"])

    def _repr_html_(self) -> str:
        return plot(self)._repr_html_()


def score(pair: Pair, scorer: Spec | Scorer, statistics: Statistics | None = None, *, seed: int = 0) -> Scores:
    """Score every dimension in scope.

    Raises:
        UsageError: the scorer needs a statistic that is not there.
        DefenseKitError: a score has the wrong shape or is not finite.
    """
    made = component(Scorer, scorer)
    tensors = statistics.tensors if statistics else {}
    if missing := made.needs - tensors.keys():
        raise UsageError(f"the scorer {called(scorer)!r} needs {', '.join(sorted(missing))}: estimate it first")
    readers = {name: tensors[name].get for name in sorted(tensors)}
    return Scores(called(scorer), pair, scoring.score_pair(pair, made, readers, Seeds(seed).purify))


@dataclass(frozen=True)
class Selection:
    """What is taken: ``tensors[name]`` is bool, or soft in [0, 1]; ``facts`` count dimensions as a result does."""

    selector: str
    scores: Scores = field(repr=False)
    tensors: selection.Selection = field(repr=False)
    facts: dict[str, Any] = field(repr=False)

    @property
    def of_eligible(self) -> float:
        """Selected as a share of the eligible dimensions."""
        return float(self.facts["selected"] / self.facts["eligible"]) if self.facts["eligible"] else 0.0

    def histogram(self) -> Histogram:
        """How the scores are spread, and where the selected ones lie."""
        return Histogram(**self.facts["scores"])

    def _repr_html_(self) -> str:
        counts = [(name, f"{self.facts[name]:,}") for name in ("dimensions", "in_scope", "eligible", "selected")]
        note = f"{self.of_eligible:.1%} of the eligible dimensions"
        return (
            html_table(f"selection by {self.selector}", ["dimensions", "count"], counts, note)
            + plot(self)._repr_html_()
        )


def select(scores: Scores, selector: Spec | Selector) -> Selection:
    """Take dimensions by score.

    Raises:
        DefenseKitError: the selector broke its contract.
    """
    made = component(Selector, selector)
    tensors = selection.select(scores.tensors, made)
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

    Raises:
        UsageError: the folder already exists and not empty, or the selection is of another pair.
        DefenseKitError: a step failed or broke its contract.
    """
    folder = Path(target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} already exists; name a folder that is not")
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
    )
    return folder


# -- what came of it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to rows, and metrics of them."""

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
    max_length: int = 128,
    precision: Precision = "float32",
    seed: int = 0,
) -> Evaluation:
    """What a model answers to rows, and metrics of it.

    Args:
        model: a folder, or one side of a pair.
        rows: with the model's own label numbers, as `load_data` gives them for a pair.
        metrics: by name; those of a backdoor need ``target``, the attacker's label by name or number.
        seed: of the metrics' intervals.

    Raises:
        UsageError: there are no rows, or a metric needs a target.
    """
    measured = {called(spec): component(Metric, spec) for spec in several(metrics)}
    for name, metric in measured.items():
        if metric.about == "backdoor" and target is None:
            raise UsageError(f"the metric {name!r} needs `target=`, the attacker's label")
    _some(rows)
    folder = model.folder if isinstance(model, Checkpoint) else model_folder(model)
    if Checkpoint(folder).task == CAUSAL:
        raise UsageError(f"{folder} is a {CAUSAL}; expected a classifier")
    loaded, tokenizer = loading.load(folder, "model")
    labels = [str(loaded.config.id2label[i]) for i in range(loaded.config.num_labels)]
    logits = inference.predict(
        loaded.to(device_type()), tokenizer, rows, max_length=max_length, precision=precision
    ).numpy()
    import numpy as np

    truth = np.array([row.label for row in rows])
    aim = None if target is None else label_number(target, labels)
    predictions = Predictions(logits, truth, aim, tuple(labels), Seeds(seed).metrics)
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


def plot(what: Result | Scores | Selection) -> Plot:
    """The curve of a result over the parameter that was chosen, or how scores are spread.

    Raises:
        ValueError: nothing was chosen in the run.
    """
    from defensekit.result import plots

    if not isinstance(what, Result | Scores | Selection):
        raise UsageError(f"expected a result, scores or a selection, got {type(what).__name__}")
    if isinstance(what, Result):
        return Plot(plots.curve(what))
    scorer = what.scorer if isinstance(what, Scores) else what.scores.scorer
    return Plot(plots.scores(what.histogram(), scorer))


def _no_report(done: int, total: int) -> None:
    """Nobody watches."""


def _some(rows: Sequence[Row]) -> None:
    if not rows:
        raise UsageError("there are no rows")
