"""A study's results as a table: any axes as rows and columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean

from defensekit.recipe.vocabulary import NOT_WORTH, NOT_WORTH_MEANS, ONE_ANSWER, ONE_ANSWER_MEANS, described, is_retuned
from defensekit.result.schema import DEFENDED
from defensekit.studies.frame import Finished, RunRecord
from defensekit.studies.keys import Label
from defensekit.studies.report.table import NO_VALUE, Column, Table, TableCell, TableRow
from defensekit.utils.errors import UsageError, listing, nearest

AxisValues = Mapping[str, Label | None]  # a value on each of some axes

REFERENCES = ("clean", "suspect", "from-base")


def pivot(
    study: Finished,
    rows: Sequence[str] = (),
    cols: Sequence[str] = (),
    metrics: Sequence[str] = (),
    models: Sequence[str] = ("purified",),
    where: AxisValues | None = None,
) -> Table:
    """The results of a study, a row per value of some axes and columns per value of others.

    Numbers are averaged over seeds and over nothing else: an axis with several values that is named neither in
    ``rows`` nor in ``cols`` becomes a row as well, if it changes only the defense, or else a column. The clean
    reference and the suspect, which no defense touched, come before the defenses that share them.

    Args:
        study: the study's folder.
        rows: axes whose values are rows.
        cols: axes whose values are columns.
        metrics: which; all that there are, if none is named.
        models: ``purified`` (of an input-level defense, ``sanitized``), and others of a result to stand beside it.
        where: values of axes to hold fixed.

    Returns:
        The table.

    Raises:
        UsageError: there is no such axis, value, metric or model; what is close is said.
    """
    runs = selected(study, where or {})
    for name in (*rows, *cols):
        _known("axis", name, study.axes)
    if twice := [name for name in rows if name in cols]:
        raise UsageError(f"the axis {twice[0]!r} can't be both rows and columns")
    rest = [axis for axis in varying(study, runs) if axis not in (*rows, *cols)]
    down = [*dict.fromkeys(rows), *(axis for axis in rest if axis in study.defenses)]
    down.sort(key=lambda axis: axis in study.defenses)  # what defenses share comes first
    across = [*dict.fromkeys(cols), *(axis for axis in rest if axis not in study.defenses)]
    numbers = Numbers(study)
    for model in models:
        _known("model", model, numbers.models)
    for metric in metrics:
        _known("metric", metric, numbers.metrics)
    shown = list(metrics or numbers.metrics)
    groups = combinations(study, runs, across)
    columns = [
        Column(
            named(group, across),
            metric.upper(),
            study.metrics[metric].better,
            floor=_floor(numbers, runs, group, metric),
        )
        for group in groups
        for metric in shown
    ]

    def row(combination: AxisValues, model: str) -> TableRow:
        own_runs = matching(runs, combination)
        labels = [shown_label(combination[axis]) if axis in combination else NO_VALUE for axis in down]
        oracles = [""] * len(groups)
        if reference := model in REFERENCES:
            run_groups = [matching(own_runs, _shared(study, group)) for group in groups]
        else:
            run_groups = [matching(own_runs, group) for group in groups]
            oracles = [numbers.oracle(group_runs) for group_runs in run_groups]
        whole = all(oracle for oracle, group_runs in zip(oracles, run_groups, strict=True) if group_runs)
        cells = [
            replace(numbers.cell(group_runs, model, metric), oracle=bool(oracle) and not whole)
            for group_runs, oracle in zip(run_groups, oracles, strict=True)
            for metric in shown
        ]
        cells += [numbers.cost(own_runs, model, name) for name in ("seconds", "peak_memory")]
        oracle = numbers.oracle(own_runs) if whole and not reference else ""
        title = described(model)[0]
        if not reference and not is_retuned(model) and numbers.not_worth(run_groups, model):
            title += f" {NOT_WORTH}"
        if any((run.id, model) in numbers.one_answer for group_runs in run_groups for run in group_runs):
            title += f" {ONE_ANSWER}"
        return TableRow((title, *labels), tuple(cells), reference, oracle)

    table_rows: list[TableRow] = []
    before: AxisValues | None = None
    for combination in combinations(study, runs, down):
        shared = _shared(study, combination)
        if shared != before:
            table_rows += [row(shared, model) for model in numbers.references]
            before = shared
        ended = numbers.ended(matching(runs, combination))
        table_rows += [
            row(combination, ended if model == "purified" else model) for model in models if model not in REFERENCES
        ]
    columns += [Column("", "seconds", digits=0), Column("", "memory, MiB", digits=0)]
    seeds = len({run.seed for run in runs})
    oracle = any(row.oracle or cell.oracle for row in table_rows for cell in row.cells)
    notes = _notes(study, runs, seeds, oracle)
    if any(NOT_WORTH in row.labels[0] for row in table_rows):
        notes = (*notes, f"{NOT_WORTH} {NOT_WORTH_MEANS} (mean over seeds, in every column).")
    if any(ONE_ANSWER in row.labels[0] for row in table_rows):
        notes = (*notes, f"{ONE_ANSWER} {ONE_ANSWER_MEANS} (of one seed and column at least).")
    return Table(study.name, ("model", *down), tuple(columns), tuple(table_rows), seeds, notes)


class Numbers:
    """The numbers of a study, by run, model and metric."""

    def __init__(self, study: Finished) -> None:
        self.study = study
        frame = study.frame[study.frame["trial"].isna() & study.frame["model"].notna()]
        self.values: dict[tuple[str, str, str], float] = frame.set_index(["run", "model", "metric"])["value"].to_dict()
        costs = frame.assign(peak_memory=frame["peak_memory"] / 2**20).set_index(["run", "model"])
        self.costs = {name: costs[name].dropna().to_dict() for name in ("seconds", "peak_memory")}
        self.oracles: dict[str, str] = frame.set_index("run")["oracle"].dropna().to_dict()
        same = frame[frame["only"].notna()]
        self.one_answer = set(zip(same["run"], same["model"], strict=True))
        self.models_of = {(run, model) for run, model, _ in self.values}
        self.metrics = list(dict.fromkeys(metric for _, _, metric in self.values))
        known = {model for _, model in self.models_of}
        self.references = [model for model in REFERENCES if model != "from-base" or model in known]
        self.models = list(dict.fromkeys(["purified", *(model for _, model, _ in self.values)]))

    def ended(self, runs: Sequence[RunRecord]) -> str:
        """What is called what the defense of some runs left: ``purified``, unless all that are done say otherwise."""
        ended = {model for model in DEFENDED.values() for run in runs if (run.id, model) in self.models_of}
        return ended.pop() if len(ended) == 1 else "purified"

    def by_seed(self, runs: Sequence[RunRecord], model: str, metric: str) -> dict[int, float]:
        """The number of every seed; of runs with the same seed, which share the model, of the first that has one.

        Args:
            runs: the runs.
            model: the model's name in the results.
            metric: the metric's name.

        Returns:
            The numbers, by seed.
        """
        by_seed: dict[int, float] = {}
        for run in runs:
            if (value := self.values.get((run.id, model, metric))) is not None:
                by_seed.setdefault(run.seed, value)
        return by_seed

    def cell(self, runs: Sequence[RunRecord], model: str, metric: str) -> TableCell:
        """The numbers of the runs, one per seed.

        Args:
            runs: the runs.
            model: the model's name in the results.
            metric: the metric's name.

        Returns:
            The cell, which knows of seeds that lack a number.
        """
        return per_seed(self.study, runs, self.by_seed(runs, model, metric))

    def not_worth(self, groups: Sequence[Sequence[RunRecord]], model: str) -> bool:
        """Whether in no group of runs the model is more accurate on plain rows than the base fine-tuned anew.

        Args:
            groups: the runs of every column; means over their seeds are compared.
            model: the model's name in the results.

        Returns:
            False as well where there is nothing to compare.
        """
        kept = self.study.kept
        if kept is None:
            return False
        pairs = [(self.by_seed(runs, model, kept), self.by_seed(runs, "from-base", kept)) for runs in groups]
        means = [(fmean(own.values()), fmean(base.values())) for own, base in pairs if own and base]
        return bool(means) and all(own <= base for own, base in means)

    def cost(self, runs: Sequence[RunRecord], model: str, name: str) -> TableCell:
        """What making the model took, a mean over the runs of every seed.

        Args:
            runs: the runs.
            model: the model's name in the results.
            name: ``seconds``, or ``peak_memory`` in MiB.

        Returns:
            The cell.
        """
        by_seed: dict[int, list[float]] = {}
        for run in runs:
            if (cost := self.costs[name].get((run.id, model))) is not None:
                by_seed.setdefault(run.seed, []).append(cost)
        return TableCell(tuple(fmean(costs) for costs in by_seed.values()))

    def oracle(self, runs: Iterable[RunRecord]) -> str:
        """What looked at what a defender can't see, in any of the runs."""
        return ", ".join(dict.fromkeys(self.oracles[run.id] for run in runs if run.id in self.oracles))


def per_seed(study: Finished, runs: Sequence[RunRecord], values: Mapping[int, float], every: bool = False) -> TableCell:
    """A cell of one number per seed, with the seeds that lack it by what became of their runs.

    Args:
        study: the study.
        runs: the runs that the cell is of.
        values: the numbers, by seed.
        every: all runs of a seed are needed for its number, and a seed that has all and no number is unmet.

    Returns:
        The cell.
    """
    states: dict[int, set[str]] = {}
    for run in runs:
        states.setdefault(run.seed, set()).add(study.state(run.id))
    lost = [outcomes for seed, outcomes in states.items() if outcomes != {"done"} and (every or seed not in values)]
    failed = sum("failed" in outcomes for outcomes in lost)
    unmet = sum(outcomes == {"done"} and seed not in values for seed, outcomes in states.items()) if every else 0
    return TableCell(tuple(values[seed] for seed in sorted(values)), failed, len(lost) - failed, unmet)


def selected(study: Finished, where: AxisValues) -> list[RunRecord]:
    """The runs with some values on some axes.

    Args:
        study: the study.
        where: a value, or its text, for each of some axes.

    Returns:
        The runs, in the study's order.

    Raises:
        UsageError: there is no such axis or value, or no run that has all of them.
    """
    runs = study.runs
    for axis, label in where.items():
        _known("axis", axis, study.axes)
        known = [shown_label(value) for value in study.axes[axis]]
        if shown_label(label) not in known:
            hint = nearest(shown_label(label), known)
            raise UsageError(f"the axis {axis!r} has no value {shown_label(label)!r}.{hint} (values: {listing(known)})")
        runs = [run for run in runs if shown_label(run.axes.get(axis)) == shown_label(label)]
    if not runs:
        raise UsageError(
            f"no run has {' and '.join(f'{axis} = {shown_label(label)}' for axis, label in where.items())}"
        )
    return runs


def matching(runs: Iterable[RunRecord], values: AxisValues) -> list[RunRecord]:
    """The runs with these values on these axes.

    Args:
        runs: the runs to choose from.
        values: a value for each of some axes.

    Returns:
        Those that have all of them.
    """
    return [run for run in runs if all(run.axes.get(axis) == label for axis, label in values.items())]


def varying(study: Finished, runs: Iterable[RunRecord]) -> list[str]:
    """The axes on which the runs differ.

    Args:
        study: the study.
        runs: some of its runs.

    Returns:
        The axes, in the study's order.
    """
    return [axis for axis in study.axes if len({run.axes.get(axis) for run in runs}) > 1]


def combinations(study: Finished, runs: Iterable[RunRecord], axes: Sequence[str]) -> list[dict[str, Label | None]]:
    """Every combination of values on some axes that a run has, in the study's order.

    Args:
        study: the study.
        runs: some of its runs.
        axes: the axes.

    Returns:
        A value for each of the axes, by axis.
    """
    used = {tuple(run.axes.get(axis) for axis in axes) for run in runs}
    every = product(*(study.axes[axis] for axis in axes))
    return [dict(zip(axes, labels, strict=True)) for labels in every if labels in used]


def shown_label(label: Label | None) -> str:
    """A value of an axis as tables show it."""
    return "as the recipe" if label is None else f"{label:g}" if isinstance(label, float) else str(label)


def named(values: AxisValues, axes: Sequence[str] = ()) -> str:
    """A place as tables show it: bare numbers with their axis.

    Args:
        values: a value for each of some axes.
        axes: which of them to name, and in which order; all, if none is named.

    Returns:
        The text.
    """
    labels = {axis: values[axis] for axis in axes or values}
    return ", ".join(
        label if isinstance(value, str) else f"{axis.rpartition('.')[2]} {label}"
        for axis, value in labels.items()
        for label in [shown_label(value)]
    )


def _shared(study: Finished, combination: AxisValues) -> AxisValues:
    """Without the axes that change nothing but the defense."""
    return {axis: label for axis, label in combination.items() if axis not in study.defenses}


def _floor(numbers: Numbers, runs: Sequence[RunRecord], group: AxisValues, metric: str) -> float | None:
    """The clean reference's mean in a column, of a metric that has a floor, if all of its rows share it."""
    if not numbers.study.metrics[metric].has_floor:
        return None
    own_runs = matching(runs, group)
    shared = [axis for axis in varying(numbers.study, own_runs) if axis not in numbers.study.defenses]
    return None if shared else numbers.cell(own_runs, "clean", metric).mean


def _notes(study: Finished, runs: Sequence[RunRecord], seeds: int, oracle: bool) -> tuple[str, ...]:
    states = [study.state(run.id) for run in runs]
    notes = [
        f"Mean ± standard deviation over n = {seeds} seeds, where no other n is said." if seeds > 1 else "One seed."
    ]
    if lost := [f"{states.count(state)} {state}" for state in ("failed", "missing") if state in states]:
        notes.append(f"Of {len(runs)} runs, {' and '.join(lost)}.")
    if oracle:
        notes.append("What has the word oracle used what a defender can't see.")
    fixed = {axis: runs[0].axes.get(axis) for axis in study.axes if axis not in varying(study, runs)} if runs else {}
    if fixed:
        notes.append(
            "Everywhere: " + ", ".join(f"{axis} = {shown_label(label)}" for axis, label in fixed.items()) + "."
        )
    return tuple(notes)


def _known(what: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        names = {"axis": "axes"}.get(what, f"{what}s")
        raise UsageError(f"there is no {what} {name!r}.{nearest(name, known)} ({names}: {listing(known, 20)})")
