"""What a row says, in numbers: measured from its answers, as a check leaves them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from defensekit.leaderboard.board import checkers, rows_in
from defensekit.leaderboard.checking import Checker, cost
from defensekit.leaderboard.keys import UNPOISONED
from defensekit.leaderboard.redraw import redrawn
from defensekit.leaderboard.row import Row
from defensekit.leaderboard.tracks import Cell, Track
from defensekit.recipe.keys import RetuningKeys
from defensekit.recipe.vocabulary import retuned
from defensekit.utils.errors import DefenseKitError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

EXCESS, ACC, ASR, PACC, BACC = "excess-asr", "acc", "asr", "pacc", "bacc"
SELF, HOST, THIRD, FAILED = "self-reported", "re-run by the host", "re-run by a third party", "did not come out again"

RETUNED: tuple[int, ...] = RetuningKeys().rows  # the numbers of rows that have a column


@dataclass(frozen=True)
class Scores:
    """The numbers of a row: ``paired`` has the values of single test rows, by metric and cell, and by the rows' ids.

    ``reference`` is the excess ASR of the clean reference, row by row.
    """

    row: Row
    track: Track
    paired: "Mapping[str, Mapping[Cell, pd.Series]]"
    reference: "Mapping[Cell, pd.Series]"

    @cached_property
    def redrawn(self) -> Mapping[str, "np.ndarray"]:
        """What chance does to the mean of each metric, (seeds, draws)."""
        return {metric: redrawn(values) for metric, values in self.paired.items()}

    @cached_property
    def left(self) -> "np.ndarray":
        """What chance does to the excess ASR that is left, (seeds, draws): of a cell below 0, nothing is left."""
        return redrawn(self.paired[EXCESS], least=0.0)

    @property
    def mean_left(self) -> float:
        """The mean over cells of the excess ASR that is left."""
        return fmean(max(float(values.mean()), 0.0) for values in self.paired[EXCESS].values())

    @property
    def name(self) -> str:
        """The entry's."""
        return self.row.name

    @property
    def of_one_answer(self) -> list[Cell]:
        """The cells whose model gives every plain test row the same answer."""
        cells = self.row.cells.items()
        return [cell for cell, result in cells if result.models[self.row.model(result)].only is not None]

    def value(self, metric: str, cell: Cell, model: str | None = None) -> float | None:
        """A metric of a cell's model: of the one that counts, if none is named."""
        result = self.row.cells[cell]
        measured = result.models[model or self.row.model(result)].metrics.get(metric)
        return measured.value if measured else None

    def mean(self, of: Callable[[Cell], float | None], attacks: Iterable[str]) -> float | None:
        """The mean over seeds and attacks of a number of cells; None where no cell has it."""
        cells = [(attack, seed) for attack in attacks for seed in self.track.keys.seeds]
        values = [value for cell in cells if cell in self.row.cells and (value := of(cell)) is not None]
        return fmean(values) if values else None

    def lost(self, cell: Cell) -> float | None:
        """ACC of the suspect less that of the defended model."""
        before, after = self.value(ACC, cell, "suspect"), self.value(ACC, cell)
        return None if before is None or after is None else before - after

    def fidelity(self, cell: Cell) -> float | None:
        """The share of the ASR that is gone times the share of the ACC that is left, as NIST has it."""
        asr, asr_after = self.value(ASR, cell, "suspect"), self.value(ASR, cell)
        acc, acc_after = self.value(ACC, cell, "suspect"), self.value(ACC, cell)
        if not asr or not acc or asr_after is None or acc_after is None:
            return None
        return (asr - asr_after) / asr * acc_after / acc

    def retuned(self, rows: int, cell: Cell, model: str | None = None) -> float | None:
        """The ASR after the attacker trained a model, the row's, further on so many poisoned rows, if he did."""
        result = self.row.cells[cell]
        name = retuned(model or self.row.model(result), rows)
        return self.value(ASR, cell, name) if name in result.models else None

    def seconds(self, cell: Cell) -> float | None:
        """What a cell's model took; of a defense all that it computed."""
        result = self.row.cells[cell]
        return cost(result) if self.row.entry.keys.model == "defended" else result.models["from-base"].seconds

    def of_cell(self, cell: Cell) -> dict[str, float | None]:
        """Every number of a cell, by its name in data; None where it was not measured."""
        return {
            "acc_before": self.value(ACC, cell, "suspect"),
            "acc": self.value(ACC, cell),
            "asr_before": self.value(ASR, cell, "suspect"),
            "asr": self.value(ASR, cell),
            "asr_clean": self.value(ASR, cell, "clean"),
            "excess_asr_before": self.value(EXCESS, cell, "suspect"),
            "excess_asr": self.value(EXCESS, cell),
            "excess_asr_clean": self.value(EXCESS, cell, "clean"),
            **{f"asr_retuned_{rows}": self.retuned(rows, cell) for rows in RETUNED},
            **{f"asr_clean_retuned_{rows}": self.retuned(rows, cell, "clean") for rows in RETUNED},
            "pacc": self.value(PACC, cell),
            "bacc": self.value(BACC, cell),
            "seconds": self.seconds(cell),
        }

    def of_attack(self, attack: str) -> dict[str, float | None]:
        """The same as means over an attack's seeds; an attack that the row has no cell of has no number."""
        numbers: dict[str, list[float]] = {}
        for cell in (cell for cell in self.row.cells if cell[0] == attack):
            for name, value in self.of_cell(cell).items():
                numbers.setdefault(name, []).extend([] if value is None else [value])
        return {name: fmean(values) if values else None for name, values in numbers.items()}

    def numbers(self) -> dict[str, float | None]:
        """Every number of the table, by its column."""
        return self._numbers

    @cached_property
    def _numbers(self) -> dict[str, float | None]:
        backdoors, attacked = list(self.track.keys.attacks), [*self.track.keys.attacks, *self.track.keys.biases]

        def mean(metric: str, attacks: Iterable[str] = backdoors, model: str | None = None) -> float | None:
            return self.mean(lambda cell: self.value(metric, cell, model), attacks)

        by_attack = {attack: mean(EXCESS, [attack]) for attack in backdoors}
        cells = list(self.row.cells.values())
        needs, handed = self.row.entry.keys.needs, float(cells[0].clean_budget)
        peaks = [peak for cell in cells if (peak := cell.models[self.row.model(cell)].peak_memory) is not None]
        return {
            "excess_asr": mean(EXCESS),
            "excess_asr_worst": max((value for value in by_attack.values() if value is not None), default=None),
            "excess_asr_clean": mean(EXCESS, model="clean"),
            "acc_lost": self.mean(self.lost, attacked),
            "harm": self.mean(self.lost, [UNPOISONED]),
            "asr": mean(ASR),
            "asr_clean": mean(ASR, model="clean"),
            **{f"asr_retuned_{rows}": self.mean(partial(self.retuned, rows), backdoors) for rows in RETUNED},
            **{
                f"asr_clean_retuned_{rows}": self.mean(partial(self.retuned, rows, model="clean"), backdoors)
                for rows in RETUNED
            },
            "pacc": mean(PACC),
            "bacc": mean(BACC, self.track.keys.biases),
            "fidelity": self.mean(self.fidelity, backdoors),
            "seconds": self.mean(self.seconds, self.track.attacks),
            "memory_mib": max(peaks) / 2**20 if peaks else None,
            "labelled_rows": handed if "labels" in needs else 0.0,
            "unlabelled_rows": handed if "texts" in needs and "labels" not in needs else 0.0,
        }

    def badge(self, host: str | None) -> str:
        """Who ran it again, if anybody did and it came out.

        A verification that failed counts after the row was changed too, until somebody but its author verified it.
        """
        authors = (self.track.attack or self.row.entry).keys.authors
        by = {_person(one.by) for one in self.row.verified} - {*map(_person, authors)}
        counted = self.row.verified if by else self.row.verifications
        if not all(one.same for one in counted):
            return FAILED
        return HOST if host is not None and _person(host) in by else THIRD if by else SELF


def _person(name: str) -> str:
    """A name as it is compared: an author is no third party because he wrote himself otherwise."""
    return " ".join(name.split()).casefold()


def scores_in(places: Sequence[Path], tracks: Sequence[str] = ()) -> dict[str, dict[str, Scores]]:
    """Check rows, or those in folders of rows; their numbers by track and row.

    Args:
        places: rows, or folders of rows.
        tracks: the files of tracks that are not shipped.

    Raises:
        DefenseKitError: a row is not right, or there are two of one name.
    """
    checker_of = checkers(tracks)
    scores: dict[str, dict[str, Scores]] = {}
    for folder in (folder for place in places for folder in rows_in(place)):
        checker = checker_of(folder)
        row = checker.check(folder)
        rows = scores.setdefault(checker.track.name, {})
        if any(one.track.digest != checker.track.digest for one in rows.values()):
            raise UsageError(f"{folder}: there is another attack of that name, with rows on {checker.track.name}")
        if row.name in rows:
            raise UsageError(f"{folder}: there is another row of {row.name} on {checker.track.name}")
        rows[row.name] = score(row, checker)
    return scores


def score(row: Row, checker: Checker) -> Scores:
    """The numbers of a row that was checked."""
    track = checker.track
    cells = [(cell, result) for cell, result in row.cells.items() if cell[0] in track.keys.attacks]
    paired = {
        metric: {cell: _values(row, checker, cell, metric, row.model(result)) for cell, result in cells}
        for metric in (EXCESS, ACC)
    }
    clean = {cell: _values(row, checker, cell, EXCESS, "clean") for cell, _ in cells}
    return Scores(replace(row, kept={}), track, paired, clean)  # of a board of many rows it would be a lot


def _values(row: Row, checker: Checker, cell: Cell, name: str, model: str) -> "pd.Series":
    """A metric of a cell's model, test row by test row."""
    import pandas as pd

    result = row.cells[cell]
    metric = checker.metric(next(spec for spec in checker.metrics_of(cell[0]) if spec["name"] == name))
    asked = row.asked(metric.on, result, model, target=(result.attack or {}).get("target"))
    if (values := metric.row_values(asked)) is None:
        raise DefenseKitError(f"{row.folder}: {name} has no values of single rows to compare")
    return pd.Series(values.astype(int), index=asked.ids)
