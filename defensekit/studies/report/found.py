"""What a study's detectors and filters found, as tables: which texts are flagged, which training rows were taken."""

from collections.abc import Mapping, Sequence

from defensekit.result.narrative import DETECTORS_MEAN, FILTERED_MEANS
from defensekit.studies.frame import AUROC, TPR, Finished, RunRecord
from defensekit.studies.report.pivot import (
    AxisValues,
    combinations,
    matching,
    per_seed,
    selected,
    shown_label,
    varying,
)
from defensekit.studies.report.table import NO_VALUE, Column, Table, TableRow

# By a run, what the row is called beside its axes, and a column's name.
Values = Mapping[tuple[str, tuple[str, ...], str], float]


def detectors(study: Finished, where: AxisValues | None = None) -> Table | None:
    """The suspect behind every detector at each of its thresholds; None for a study without a detector.

    Args:
        study: the study.
        where: values of axes to hold fixed.
    """
    frame = study.frame[study.frame["detector"].notna()]
    areas = frame[frame["metric"] == AUROC].set_index(["run", "detector"])["value"].dropna().to_dict()
    values: dict[tuple[str, tuple[str, ...], str], float] = {}
    for one in frame[frame["false_positives"].notna()].itertuples():
        labels = one.detector, f"{one.false_positives:.0%}"
        found = {AUROC: areas.get((one.run, one.detector)), "flagged": one.flagged, one.metric: one.value}
        values |= {(one.run, labels, name): value for name, value in found.items() if value is not None}
    measured = [name for name in study.metrics if any(name == of for _, _, of in values)]
    columns = {
        AUROC: Column("", "AUROC", "higher"),
        TPR: Column("", "TPR", "higher"),
        "flagged": Column("", "flagged, plain"),
        **{name: Column("", name.upper(), study.metrics[name].better) for name in measured},
    }
    return _table(study, where, "Detectors", ("detector", "FPR"), columns, values, DETECTORS_MEAN)


def filters(study: Finished, where: AxisValues | None = None) -> Table | None:
    """How well every filter found the poisoned training rows; None for a study without a filter.

    Args:
        study: the study.
        where: values of axes to hold fixed.
    """
    frame = study.frame[study.frame["taken"].notna()].drop_duplicates(["run", "model"]).set_index(["run", "model"])
    columns = {
        "taken": Column("", "taken", digits=0),
        "poisoned": Column("", "poisoned", digits=0),
        "precision": Column("", "precision", "higher"),
        "recall": Column("", "recall", "higher"),
        "filter_auroc": Column("", "AUROC", "higher"),
    }
    values: Values = {
        (run, (model,), name): float(value) for name in columns for (run, model), value in frame[name].dropna().items()
    }
    return _table(
        study,
        where,
        "Training rows taken",
        ("model",),
        columns,
        values,
        f"Of the attacker's training rows: {FILTERED_MEANS}.",
    )


def _table(
    study: Finished,
    where: AxisValues | None,
    title: str,
    heads: Sequence[str],
    columns: Mapping[str, Column],
    values: Values,
    note: str,
) -> Table | None:
    """A row for each thing that was found, at every value of the axes on which runs differ; None without any."""
    runs = selected(study, where or {})
    axes = varying(study, runs)
    rows = []
    for place in combinations(study, runs, axes):
        own = matching(runs, place)
        ids = {run.id for run in own}
        for labels in dict.fromkeys(labels for id, labels, _ in values if id in ids):
            cells = (per_seed(study, own, _by_seed(own, labels, name, values)) for name in columns)
            shown = (shown_label(place[axis]) if axis in place else NO_VALUE for axis in axes)
            rows.append(TableRow((*labels, *shown), tuple(cells)))
    seeds = len({run.seed for run in runs})
    return Table(title, (*heads, *axes), tuple(columns.values()), tuple(rows), seeds, (note,)) if rows else None


def _by_seed(runs: Sequence[RunRecord], labels: tuple[str, ...], name: str, values: Values) -> dict[int, float]:
    return {run.seed: values[key] for run in runs if (key := (run.id, labels, name)) in values}
