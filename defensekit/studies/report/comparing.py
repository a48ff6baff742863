"""Defenses compared with each other: as the rule chose, and at matched accuracy; differences per seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from defensekit.recipe.vocabulary import MODELS
from defensekit.result.schema import ResetCounts
from defensekit.studies.frame import Finished, RunRecord
from defensekit.studies.keys import Label
from defensekit.studies.report.pairing import RESAMPLES, Stored, bootstrap
from defensekit.studies.report.pivot import (
    REFERENCES,
    AxisValues,
    Numbers,
    combinations,
    matching,
    named,
    per_seed,
    selected,
    varying,
)
from defensekit.studies.report.table import NO_VALUE, Column, Table, TableCell, TableRow
from defensekit.utils.errors import UsageError, listing, nearest

MARGINS = (0.01, 0.02, 0.05)  # of test ACC below the suspect's


@dataclass(frozen=True)
class Point:
    """What a defense left: its run, the value that was tried (None where none varied), its metrics on test rows."""

    run: RunRecord
    value: float | None
    metrics: dict[str, float]
    trial: bool = False


@dataclass(frozen=True)
class Line:
    """A defense against one group's suspects: its runs, and the points that they give."""

    runs: Sequence[RunRecord]
    points: Sequence[Point]


@dataclass(frozen=True)
class Group:
    """Defenses, by their labels, that met the same suspects; clean reference and suspect by metric and seed."""

    label: str
    lines: dict[str, Line]
    references: dict[str, dict[str, dict[int, float]]]


class Comparison:
    """The defenses of a study in groups that share what they defend.

    What varies along a line, ``over``, is what its rule tried or, in a study whose rules tried nothing, an axis of
    numbers of the selector, such as its fraction.
    """

    def __init__(self, study: Finished, where: AxisValues | None = None) -> None:
        self.study = study
        self.runs = selected(study, where or {})
        self.numbers = Numbers(study)
        self.stored = Stored(study)
        self.seeds = len({run.seed for run in self.runs})
        self.unpaired = False  # whether some answers could not be compared
        self.tried = self._trials()
        axes = varying(study, self.runs)
        self.axis = None if self.tried else next((axis for axis in axes if self._is_strength(axis)), None)
        self.over = self.axis or ", ".join(dict.fromkeys(study.frame["over"].dropna()))
        self.shared = [axis for axis in axes if axis not in study.defenses]
        self.own = [axis for axis in axes if axis in study.defenses and axis != self.axis]

    def _is_strength(self, axis: str) -> bool:
        values = self.study.axes[axis]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return axis.startswith(("defense.selector.", "defense.sanitizer.", "defense.filter.")) and numbers

    def _trials(self) -> dict[str, dict[float, dict[str, float]]]:
        values: dict[str, dict[float, dict[str, float]]] = {}
        trials = self.study.frame.dropna(subset="trial")[["run", "trial", "metric", "value"]]
        for run, trial, metric, value in trials.itertuples(index=False):
            values.setdefault(run, {}).setdefault(float(trial), {})[metric] = float(value)
        return values

    @cached_property
    def groups(self) -> list[Group]:
        """The groups, in the study's order."""
        groups = []
        for shared in combinations(self.study, self.runs, self.shared):
            runs = matching(self.runs, shared)
            lines = {
                named(own) or MODELS[self.numbers.ended(runs)][0]: self._line(matching(runs, own))
                for own in combinations(self.study, runs, self.own)
            }
            metrics = self.numbers.metrics
            references = {m: {name: self.numbers.by_seed(runs, m, name) for name in metrics} for m in REFERENCES}
            groups.append(Group(named(shared), lines, references))
        return groups

    def _line(self, runs: Sequence[RunRecord]) -> Line:
        return Line(runs, [point for run in runs for point in self._points(run)])

    def _points(self, run: RunRecord) -> list[Point]:
        if run.id in self.tried:
            trials = sorted(self.tried[run.id].items())
            return [Point(run, value, metrics, trial=True) for value, metrics in trials]
        point = self.final(run)
        return [point] if point else []

    def final(self, run: RunRecord) -> Point | None:
        """What a run ended with."""
        names = self.numbers.metrics
        ended = self.numbers.ended([run])
        metrics = {m: self.numbers.values[run.id, ended, m] for m in names if (run.id, ended, m) in self.numbers.values}
        value = run.axes.get(self.axis) if self.axis else self.chosen.get(run.id)
        return Point(run, None if value is None else float(value), metrics) if metrics else None

    @cached_property
    def chosen(self) -> dict[str, float]:
        """The value that the rule took, by run."""
        chosen: dict[str, float] = self.study.frame.set_index("run")["chosen"].dropna().to_dict()
        return chosen

    # -- choices -------------------------------------------------------------------------------------------------------

    @property
    def choices(self) -> list[float | None]:
        """How one point per seed is taken of a line: as the run ended (None), or by a margin of test ACC."""
        ended: list[float | None] = [] if self.axis else [None]
        return ended + (list(MARGINS) if self.over and self.study.kept else [])

    def called(self, choice: float | None, label: str) -> str:
        """How a defense's points were chosen, in words.

        Args:
            choice: one of `choices`.
            label: the defense.

        Returns:
            The words.
        """
        if choice is not None:
            return f"oracle-matched, {choice * 100:g} point{'s' * (choice != 0.01)}"
        rules = dict.fromkeys(self.rules[run.id] for run in self._runs(label) if run.id in self.rules)
        return ", ".join(rules) or "as run"

    @cached_property
    def rules(self) -> dict[str, str]:
        """What chose, by run."""
        rules: dict[str, str] = self.study.frame.set_index("run")["rule"].dropna().to_dict()
        return rules

    def taken(self, group: Group, line: Line, choice: float | None) -> dict[int, Point]:
        """The point of every seed.

        Args:
            group: what met the same suspects.
            line: the defense in it.
            choice: one of `choices`. Of a margin the point is the value that does most and keeps the suspect's test ACC
                to within it.

        Returns:
            The points, by seed; a seed without such a point is not in it.
        """
        if choice is None:
            return {run.seed: point for run in line.runs if (point := self.final(run))}
        kept = self.study.kept or ""
        points: dict[int, Point] = {}
        for point in line.points:
            seed = point.run.seed
            before = group.references["suspect"][kept].get(seed)
            after = point.metrics.get(kept)
            if before is None or point.value is None or after is None or after < before - choice - 1e-9:
                continue
            lower = point.run.id in self.study.lower_does_more
            if seed not in points or (point.value > (points[seed].value or 0.0)) != lower:
                points[seed] = point
        return points

    def resets(self, group: Group) -> dict[str, list[ResetCounts]]:
        """What the defenses of a group selected, one of each seed: as the run ended, or in the middle of the axis."""
        by_label: dict[str, list[ResetCounts]] = {}
        for label, line in group.lines.items():
            runs = [run for run in line.runs if self.axis is None or run.axes[self.axis] == self.middle]
            ended = [self.study.result(run.id) for run in runs if run.id in self.study.done]
            resets = [reset for result in ended if (reset := result.models[result.defended].reset)]
            by_label |= {label: resets} if resets else {}
        return by_label

    @property
    def middle(self) -> Label | None:
        """The value in the middle of the axis, where there is one."""
        values = sorted({run.axes[self.axis] for run in self.runs}) if self.axis else []
        return values[len(values) // 2] if values else None

    # -- tables --------------------------------------------------------------------------------------------------------

    def matched(self) -> Table:
        """Every defense as its rule chose and at matched ACC: the value, and every metric."""
        metrics, columns, references = self.numbers.metrics, [], []
        for group in self.groups:
            columns += [Column(group.label, self.over.rpartition(".")[2], digits=2)] if self.over else []
            columns += [
                Column(group.label, m.upper(), self.study.metrics[m].better, floor=self._floor(group, m))
                for m in metrics
            ]
        for model in self.numbers.references:
            cells = [cell for group in self.groups for cell in self._reference(group, model)]
            references.append(TableRow((MODELS[model][0], NO_VALUE), tuple(cells), reference=True))
        rows = []
        for choice in self.choices:
            for label in self.labels:
                cells = [cell for group in self.groups for cell in self._chosen(group, group.lines.get(label), choice)]
                rows.append(TableRow((self.called(choice, label), label), tuple(cells), oracle=self.oracle(label)))
        kept = (self.study.kept or "").upper()
        notes = (
            f"oracle-matched: the value that does most and whose {kept} on the test rows is within so many points of "
            "the suspect's. "
            f"No defender has that {kept}: this compares defenses at the same price, and is no result of a defense.",
            "“none on 2”: on two seeds no value that was tried is that close.",
        )
        table_rows = (*references, *rows)
        return Table(
            "At matched ACC",
            ("chosen by", "defense"),
            tuple(columns),
            table_rows,
            self.seeds,
            notes[: 2 * bool(self.over)],
        )

    def differences(self, against: str | None = None) -> Table:
        """Every other defense minus one of them: same seeds, same test rows.

        Args:
            against: the one; the first, if none is named.

        Returns:
            The table.

        Raises:
            UsageError: there is no such defense.
        """
        if against is not None and against not in self.labels:
            hint = nearest(against, self.labels)
            raise UsageError(f"there is no defense {against!r}.{hint} (defenses: {listing(self.labels, 20)})")
        against = self.labels[0] if against is None else against
        metrics = self.numbers.metrics
        columns = [
            Column(g.label, f"Δ {m.upper()}", self.study.metrics[m].better, signed=True)
            for g in self.groups
            for m in metrics
        ]
        rows = []
        for choice in self.choices:
            for label in self.labels:
                if label != against:
                    cells = [cell for group in self.groups for cell in self._differences(group, label, against, choice)]
                    rows.append(TableRow((self.called(choice, label), label), tuple(cells), oracle=self.oracle(label)))
        notes = [
            f"Each minus {against}: the mean over seeds, [95 % of it when test rows are drawn anew in pairs, "
            f"{RESAMPLES:,} times, within each seed]; every seed's own.",
            "The interval is of these seeds and choices, and says nothing of others.",
        ]
        if 1 < self.seeds < 6:
            notes.append(
                f"{self.seeds} seeds carry no rank test: the smallest p that they could give is {2 / 2**self.seeds:g}."
            )
        if self.unpaired:
            notes.append("Where no interval stands, the stored answers are not in the workspace, or rows differ.")
        return Table(
            f"Differences from {against}",
            ("chosen by", "defense"),
            tuple(columns),
            tuple(rows),
            self.seeds,
            tuple(notes),
        )

    @cached_property
    def labels(self) -> list[str]:
        """What the defenses are called."""
        return list(dict.fromkeys(label for group in self.groups for label in group.lines))

    def oracle(self, label: str) -> str:
        """What a defense looked at that a defender can't see."""
        return self.numbers.oracle(self._runs(label))

    def _runs(self, label: str) -> list[RunRecord]:
        return [run for group in self.groups if label in group.lines for run in group.lines[label].runs]

    def _floor(self, group: Group, metric: str) -> float | None:
        floors = group.references["clean"][metric].values() if self.study.metrics[metric].has_floor else ()
        return TableCell(tuple(floors)).mean

    def _reference(self, group: Group, model: str) -> list[TableCell]:
        values = group.references[model]
        cells = [TableCell(tuple(values[m][seed] for seed in sorted(values[m]))) for m in self.numbers.metrics]
        return [*[TableCell()] * bool(self.over), *cells]

    def _chosen(self, group: Group, line: Line | None, choice: float | None) -> list[TableCell]:
        metrics = self.numbers.metrics
        if line is None:
            return [TableCell()] * (bool(self.over) + len(metrics))
        taken = self.taken(group, line, choice)
        values = [{seed: point.value for seed, point in taken.items()}] if self.over else []
        values += [{seed: point.metrics.get(metric) for seed, point in taken.items()} for metric in metrics]
        return [self._cell(line.runs, value) for value in values]

    def _differences(self, group: Group, label: str, against: str, choice: float | None) -> list[TableCell]:
        metrics = self.numbers.metrics
        if label not in group.lines or against not in group.lines:
            return [TableCell()] * len(metrics)
        line, other = group.lines[label], group.lines[against]
        ours, theirs = self.taken(group, line, choice), self.taken(group, other, choice)
        return [self._difference([*line.runs, *other.runs], ours, theirs, metric) for metric in metrics]

    def _cell(self, runs: Sequence[RunRecord], values: dict[int, float | None]) -> TableCell:
        """A cell of one value per seed; a seed whose runs are all done and that has none counts as unmet."""
        return per_seed(self.study, runs, {seed: value for seed, value in values.items() if value is not None}, True)

    def _difference(
        self, runs: Sequence[RunRecord], ours: dict[int, Point], theirs: dict[int, Point], metric: str
    ) -> TableCell:
        """One metric's differences by seed, with an interval over rows where their answers are stored."""
        seeds = [s for s in sorted(ours) if s in theirs and metric in ours[s].metrics and metric in theirs[s].metrics]
        cell = self._cell(runs, {seed: ours[seed].metrics[metric] - theirs[seed].metrics[metric] for seed in seeds})
        if not seeds or not self.study.metrics[metric].is_mean:
            return cell
        pairs = []
        for seed in seeds:
            a, b = (
                self.stored.row_values(p.run.id, p.value if p.trial else None, metric)
                for p in (ours[seed], theirs[seed])
            )
            if a is None or b is None or a[1] != b[1]:
                self.unpaired = True
                return cell
            pairs.append(a[0].astype(int) - b[0].astype(int))
        return replace(cell, interval=bootstrap(pairs))
