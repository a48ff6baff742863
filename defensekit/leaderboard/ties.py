"""Which rows of a track can be told apart, and which can't: groups in place of ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from defensekit.leaderboard.redraw import interval
from defensekit.leaderboard.scores import ACC, EXCESS, Scores


@dataclass(frozen=True)
class Standing:
    """Where a row stands: its group, 0 for the best, and the trivial baselines that it is not better than."""

    scores: Scores
    interval: tuple[float, float]
    group: int
    no_better_than: Sequence[str]


@dataclass(frozen=True)
class Standings:
    """The rows of a track, best first, and how many neighbours can be told apart."""

    rows: Sequence[Standing]
    apart: int


def standings(rows: Sequence[Scores]) -> Standings:
    """Rows in the order of the excess ASR that is left, in groups.

    A model that a trigger turns away from the target has no backdoor, and is no better for it than another without:
    below 0 a cell counts as 0. A group begins with the best row that is in none; all that follow belong to it, up to
    the first whose difference from the best has an interval above 0.
    """
    ordered = sorted(rows, key=lambda one: (one.mean_left, one.name))
    baselines = [one for one in ordered if one.row.entry.keys.baseline]
    placed: list[Standing] = []
    group, apart, leader = -1, 0, None
    for i, one in enumerate(ordered):
        if leader is None or _worse(one, leader):
            group, leader = group + 1, one
        if i and _worse(one, ordered[i - 1]):
            apart += 1
        beaten_by = [] if one in baselines else [base.name for base in baselines if not _better(one, base)]
        placed.append(Standing(one, interval(one.redrawn[EXCESS]), group, beaten_by))
    return Standings(placed, apart)


@dataclass(frozen=True)
class Difference:
    """A row less another on the same test rows: the mean and 95 % of it, of excess ASR that is left and of ACC."""

    name: str
    excess_asr: tuple[float, float, float]
    acc: tuple[float, float, float]


def differences(row: Scores, others: Sequence[Scores]) -> list[Difference]:
    """A row less every other of its track, those with the least excess ASR first; below 0 a cell has none."""
    ordered = sorted((one for one in others if one.name != row.name), key=lambda one: (one.mean_left, one.name))
    return [Difference(one.name, _left(row, one), _acc(row, one)) for one in ordered]


def _left(one: Scores, other: Scores) -> tuple[float, float, float]:
    return one.mean_left - other.mean_left, *interval(one.left - other.left)


def _acc(one: Scores, other: Scores) -> tuple[float, float, float]:
    """Cells weigh alike, as in the table."""
    means = [fmean(float(values.mean()) for values in each.paired[ACC].values()) for each in (one, other)]
    return means[0] - means[1], *interval(one.redrawn[ACC] - other.redrawn[ACC])


def _worse(one: Scores, other: Scores) -> bool:
    """Whether a row's excess ASR is higher than another's, by more than chance."""
    return interval(one.left - other.left)[0] > 0


def _better(one: Scores, other: Scores) -> bool:
    """Whether a row has less excess ASR or more ACC than another, by more than chance."""
    less = interval(one.left - other.left)[1] < 0
    return less or interval(one.redrawn[ACC] - other.redrawn[ACC])[0] > 0
