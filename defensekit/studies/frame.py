"""The results of a study as a table: read from its folder, nothing is run."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from defensekit.components import KINDS
from defensekit.components.metric import Measured
from defensekit.host.discovery import cached_plugins
from defensekit.result.schema import MetricRecord, Result, read_result
from defensekit.studies.folder import Folder
from defensekit.studies.keys import Label
from defensekit.utils.errors import DefenseKitError, UsageError, printable_name

if TYPE_CHECKING:
    from pandas import DataFrame

# What a column holds; the axes stand between the first five and the rest.
_COLUMNS = {
    "study": "string",
    "run": "string",
    "seed": "Int64",
    "state": "string",
    "error": "string",
    "model": "string",
    "trial": "Float64",
    "metric": "string",
    "value": "Float64",
    "low": "Float64",
    "high": "Float64",
    "rows": "Int64",
    "seconds": "Float64",
    "peak_memory": "Int64",
    "only": "string",
    "reset_of_eligible": "Float64",
    "reset_of_all": "Float64",
    "taken": "Int64",
    "poisoned": "Int64",
    "precision": "Float64",
    "recall": "Float64",
    "filter_auroc": "Float64",
    "detector": "string",
    "false_positives": "Float64",
    "flagged": "Float64",
    "dev_accuracy": "Float64",
    "planted": "Float64",
    "rule": "string",
    "over": "string",
    "chosen": "Float64",
    "floor": "Float64",
    "clean_rows": "Int64",
    "oracle": "string",
    "machine": "string",
}
_FIRST = 5
AUROC, TPR = "auroc", "tpr"  # what is measured of a detector beside the run's metrics


def results(folder: str | Path) -> "DataFrame":
    """The results of a study as a tidy frame: one row per run, model (or detector) and metric.

    Every run that the study had when it last ran is there. ``state`` is ``done``, ``failed`` (with its ``error``) or
    ``missing``; of the last two there is one row, without model and metric. An axis is a column of its name (``axis.``
    before it, where another column is called so). ``trial`` is the value that the rule tried, and nothing for the
    models of a result: ``frame[frame.trial.isna()]`` leaves the trials out. ``value``, ``low`` and ``high`` are the
    metric with its 95 % interval over ``rows`` test rows, ``floor`` is the clean reference's value of a metric that has
    a floor; ``seconds`` is what making the model took, statistics included, and ``peak_memory`` the bytes of memory at
    the peak of that; ``only`` is the answer of a model that gives all plain test rows the same one (none of these is
    known of trials). Of a model that was trained without rows that a filter took, ``taken`` says how many, ``poisoned``
    how many of all were poisoned, and ``precision``, ``recall`` and ``filter_auroc`` how well these were found. Rows
    with a ``detector`` have no model: ``auroc`` once, and at each rate of ``false_positives`` on held-out clean rows
    ``tpr``, and the metrics of the suspect that does not answer what is ``flagged``, a share of plain test rows.
    ``chosen`` is the value of ``over`` that ``rule`` took;
    ``dev_accuracy`` is what it saw of a trial, and ``planted``, where it planted triggers, what the family that is left
    with most still turns; ``oracle`` names what looked at what a defender can't see; ``machine``
    made the numbers.

    Args:
        folder: a study's folder, ``WORKSPACE/studies/NAME``, or one result's file, for the rows of its run alone.

    Raises:
        UsageError: the file is no result.
        DefenseKitError: there is no study in the folder, or one of its files is damaged.
    """
    if not Path(folder).is_file():
        return Finished(Path(folder)).frame
    result = read_result(folder)
    about = {"study": result.study, "run": result.identity[:16], "seed": result.recipe["seed"], "state": "done"}
    about |= {_column(axis): label for axis, label in result.axes.items()}
    axes = {axis: [label] for axis, label in result.axes.items()}
    return _framed([{**about, **row} for row in _rows(result)], axes)


def export(folder: str | Path, to: str | Path) -> list[Path]:
    """Write `results` as ``results.csv`` and ``results.parquet``.

    Args:
        folder: a study's folder, or one result's file.
        to: the folder to write into.

    Returns:
        The paths of the two files.

    Raises:
        UsageError: the file is no result.
        DefenseKitError: the folder has no study, or one of its files is damaged.
    """
    frame, target = results(folder), Path(to)
    target.mkdir(parents=True, exist_ok=True)
    paths = [target / "results.csv", target / "results.parquet"]
    texts = frame.select_dtypes("string").columns
    cells = frame.assign(**{name: frame[name].map(csv_cell, na_action="ignore") for name in texts})
    cells.rename(columns=csv_cell).to_csv(paths[0], index=False)
    frame.to_parquet(paths[1], index=False)
    return paths


def csv_cell(text: str) -> str:
    """A text as a cell of a CSV file: with an apostrophe where a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


class RunRecord(BaseModel):
    """A run, as a study's ``study.json`` knows it."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    axes: dict[str, Label]
    seed: int


class _Record(BaseModel):
    study: dict[str, Any]
    axes: dict[str, list[Label]]
    runs: list[RunRecord]


class Finished:
    """A study's folder, read only."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.folder = Folder.at(self.path)
        try:
            self.record = _Record.model_validate(self.folder.read())
        except ValidationError as error:
            location = printable_name(".".join(map(str, error.errors()[0]["loc"])))
            raise DefenseKitError(
                f"{self.path / 'study.json'} is damaged (at {location}); running the study writes it again"
            ) from error
        self.name = str(self.record.study.get("name", self.path.name))
        self.runs = self.record.runs
        self.done = self.folder.done()
        self.lower_does_more: set[str] = set()  # runs whose rule or axis has such a parameter; known with the frame
        self._metrics: dict[str, MetricRecord] = {}
        self.failures = {id: facts for id, facts in self.folder.failures().items() if id not in self.done}

    @cached_property
    def axes(self) -> dict[str, list[Label | None]]:
        """The values on every axis in the study's order; None where a run beside the matrix does not lie on it."""
        names = dict.fromkeys([*self.record.axes, *(axis for run in self.runs for axis in run.axes)])
        axes: dict[str, list[Label | None]] = {}
        for name in names:
            used = dict.fromkeys(run.axes.get(name) for run in self.runs)
            order = dict.fromkeys([*self.record.axes.get(name, ()), *used])
            axes[name] = [value for value in order if value in used]
        return axes

    @cached_property
    def defenses(self) -> set[str]:
        """The axes that change nothing but the defense, so that suspect and clean reference are the same along them."""
        matrix = self.record.study.get("matrix", {})
        axes = set()
        for axis in self.axes:
            values = matrix.get(axis)
            paths = {path for over in values.values() for path in over} if isinstance(values, dict) else {axis}
            if all(path == "defense" or path.startswith("defense.") for path in paths):
                axes.add(axis)
        return axes

    def result(self, id: str) -> Result:
        """The result of a run that is done.

        Raises:
            DefenseKitError: it was written by another version.
        """
        path = self.folder.results / f"{id}.json"
        try:
            result = Result.model_validate_json(path.read_bytes())
        except ValidationError as error:
            known = Result.model_fields["schema_version"].default
            raise DefenseKitError(
                f"{path} is no result of schema version {known}; remove it, and running the study writes it again"
            ) from error
        return result.model_copy(update={"folder": str(self.path)})

    def state(self, id: str) -> str:
        """``done``, ``failed`` or ``missing``."""
        return "done" if id in self.done else "failed" if id in self.failures else "missing"

    @cached_property
    def frame(self) -> "DataFrame":
        """What `results` gives."""
        return _framed([record for run in self.runs for record in self._records(run)], self.axes)

    @property
    def metrics(self) -> dict[str, MetricRecord]:
        """What was measured, as the results have it."""
        assert self.frame is not None  # results are read with it
        return self._metrics

    @property
    def kept(self) -> str | None:
        """The metric of what a defense should keep: of plain rows, higher is better."""
        return next((n for n, m in self.metrics.items() if m.on == "plain" and m.better == "higher"), None)

    @property
    def traded(self) -> tuple[str, str] | None:
        """The metrics that a defense trades for each other: what it should keep, and what is left of the attack."""
        lower = {m.on: n for n, m in reversed(self.metrics.items()) if m.better == "lower"}
        left = lower.get("both", lower.get("triggered"))  # what a trigger does, without the model's plain errors
        return (self.kept, left) if self.kept and left else None

    def _records(self, run: RunRecord) -> Iterator[dict[str, Any]]:
        state = self.state(run.id)
        kinds = {axis: _kind(values) for axis, values in self.axes.items()}
        labels = {_column(axis): str(label) if kinds[axis] == "string" else label for axis, label in run.axes.items()}
        about: dict[str, Any] = {"study": self.name, "run": run.id, "seed": run.seed, "state": state, **labels}
        if state != "done":
            error = self.failures.get(run.id, {}).get("error")
            yield about if error is None else {**about, "error": str(error)}
            return
        result = self.result(run.id)
        self._metrics = {**result.metrics, **self._metrics}
        if result.chosen.lower_does_more if result.chosen else any(_lower(result, axis) for axis in run.axes):
            self.lower_does_more.add(run.id)
        for row in _rows(result):
            yield {**about, **row}


def _lower(result: Result, axis: str) -> bool:
    """Whether an axis is a parameter of which lower values do more, such as a threshold; not known without its plugin.

    An axis has one of a defense's parts, as in ``defense.selector.above``, or a step: ``defense.purifier.0.keep``.
    """
    section, _, over = axis.partition(".")
    named, _, parameter = over.rpartition(".")
    part, _, step = named.partition(".")
    spec = result.recipe.get("defense", {}).get(part) if section == "defense" else None
    if isinstance(spec, list) and step.isdecimal():
        spec = dict(enumerate(spec)).get(int(step))
    if not isinstance(spec, dict) or part not in KINDS:
        return False
    try:
        return parameter in cached_plugins().find(part, spec["name"]).lower_does_more
    except UsageError:
        return False


def _rows(result: Result) -> Iterator[dict[str, Any]]:
    """A result's rows of the frame, without the columns that identify the run."""
    about: dict[str, Any] = {
        "clean_rows": result.clean_budget,
        "oracle": ", ".join(result.oracle) or None,
        "machine": f"{result.environment.device_name}, {result.environment.device}, "
        f"threads {result.environment.threads}",
    }
    if result.chosen:
        about |= {"rule": result.chosen.rule, "over": result.chosen.over, "chosen": result.chosen.value}
    for name, model in result.models.items():
        columns: dict[str, Any] = {"model": name, **model.model_dump(include={"seconds", "peak_memory", "only"})}
        if model.reset:
            columns |= {"reset_of_eligible": model.reset.of_eligible, "reset_of_all": model.reset.of_all}
        if found := model.filtered:
            columns |= found.model_dump(include={"taken", "poisoned", "precision", "recall"})
            columns["filter_auroc"] = found.auroc
        for metric, measured in model.metrics.items():
            yield {**about, **columns, **_measured(result, metric, measured)}
    for name, one in result.detectors.items():
        columns = {"detector": name, "seconds": one.seconds}
        if one.auroc:
            yield {**about, **columns, **_measured(result, AUROC, one.auroc)}
        for point in one.points:
            columns |= {"false_positives": point.rate, "flagged": point.flagged["plain"]}
            for metric, measured in {**({TPR: point.tpr} if point.tpr else {}), **point.metrics}.items():
                yield {**about, **columns, **_measured(result, metric, measured)}
    for trial in result.curve:
        columns = {"model": result.defended, "trial": trial.value, "dev_accuracy": trial.dev_accuracy}
        columns |= {"planted": max(trial.planted.values())} if trial.planted else {}
        for metric, measured in trial.metrics.items():
            yield {**about, **columns, **_measured(result, metric, measured)}


def _measured(result: Result, metric: str, measured: Measured) -> dict[str, Any]:
    floor = result.floors.get(metric)
    return {"metric": metric, "floor": floor, **measured.model_dump(exclude={"parts"})}


def _framed(records: Sequence[dict[str, Any]], axes: Mapping[str, Sequence[Label | None]]) -> "DataFrame":
    """Rows as a frame, with a column for each axis."""
    import pandas

    names = list(_COLUMNS)
    order = [*names[:_FIRST], *map(_column, axes), *names[_FIRST:]]
    frame = pandas.DataFrame.from_records(records, columns=order).astype(_COLUMNS)
    for axis, values in axes.items():
        frame[_column(axis)] = frame[_column(axis)].astype(_kind(values))
    return frame


def _column(axis: str) -> str:
    """What the column of an axis is called."""
    return f"axis.{axis}" if axis in _COLUMNS else axis


def _kind(values: Sequence[Label | None]) -> str:
    """The type of an axis's column: numbers, where it has nothing else."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        return "Int64"
    if kinds == {bool}:
        return "boolean"
    return "Float64" if kinds and kinds <= {int, float} else "string"
