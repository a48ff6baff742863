"""The board's figures, as what their templates draw: places in an SVG image, with texts that stay texts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defensekit.leaderboard.columns import shown
from defensekit.leaderboard.scores import RETUNED
from defensekit.leaderboard.table import TrackTable

_LINE = 15  # the height of a label, in pixels
_LABEL = 40  # characters


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels; it is widened to begin and end at a tick."""

    low: float
    high: float
    start: float
    end: float

    @property
    def step(self) -> float:
        """Between two ticks, of which there are about five: 1, 2 or 5 times a power of ten."""
        rough = max(self.high - self.low, 1e-3) / 5
        power: float = 10 ** math.floor(math.log10(rough))
        return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts."""
        digits = max(0, -math.floor(math.log10(self.step)))
        first, last = math.floor(self.low / self.step + 1e-9), math.ceil(self.high / self.step - 1e-9)
        return [(n * self.step, shown(n * self.step, f".{digits}f")) for n in range(first, max(last, first + 1) + 1)]

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.ticks[0][0], self.ticks[-1][0]
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


@dataclass(frozen=True)
class Point:
    """A row in the figure of all rows: where it is, and where its label stands."""

    name: str
    x: float
    y: float
    label: str
    label_y: float
    says: str
    baseline: bool


@dataclass(frozen=True)
class Tradeoff:
    """What is left of the attacks against what a defense costs: a point per row, with its name at the side."""

    height: float
    across: Axis
    up: Axis
    points: Sequence[Point]


def tradeoff(table: TrackTable) -> Tradeoff | None:
    """The figure of a track's rows; None where no row has both numbers."""
    records = [table.record(one) for one in table.standings.rows]
    records = [one for one in records if None not in (one["acc_lost"], one["excess_asr"])]
    if not records:
        return None
    xs, ys = ([one[name] for one in records] for name in ("acc_lost", "excess_asr"))
    height = max(380, _LINE * (len(records) + 2))
    across, up = Axis(min(xs), max(xs), 60, 560), Axis(min(*ys, 0.0), max(ys), height, 10)
    records.sort(key=lambda one: (-one["excess_asr"], one["acc_lost"], one["name"]))
    places = apart([up.at(one["excess_asr"]) for one in records], _LINE, height)
    return Tradeoff(height, across, up, [_point(*each, across, up) for each in zip(records, places, strict=True)])


def _point(record: Mapping[str, Any], label_y: float, across: Axis, up: Axis) -> Point:
    title = record["title"]
    label = title if len(title) <= _LABEL else f"{title[: _LABEL - 1]}…"
    left, low, high = (shown(record[name]) for name in ("excess_asr", "excess_asr_low", "excess_asr_high"))
    return Point(
        record["name"],
        across.at(record["acc_lost"]),
        up.at(record["excess_asr"]),
        f"{label} ({record['group']})",
        label_y,
        f"{title}: excess ASR {left} ({low} to {high}), ACC lost {shown(record['acc_lost'])}",
        record["baseline"],
    )


def apart(wanted: Sequence[float], gap: float, end: float) -> list[float]:
    """Places near the wanted ones, which are sorted, at least ``gap`` apart and up to ``end``."""
    places: list[float] = []
    for each in wanted:
        places.append(max(each, places[-1] + gap) if places else each)
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], end)
        end = places[i] - gap
    return places


@dataclass(frozen=True)
class Curve:
    """The ASR of one attack before and after a defense, and after the attacker came back with a few poisoned rows.

    ``ours`` and ``clean``, the clean reference, are places (x, y) of what was measured.
    """

    attack: str
    steps: Sequence[tuple[float, str]]
    ours: Sequence[tuple[float, float]]
    clean: Sequence[tuple[float, float]]
    says: str


def curve(attack: str, numbers: Mapping[str, float | None]) -> Curve | None:
    """The figure of an attack's numbers, as `Scores.of_attack` has them; None where it has no ASR.

    The clean reference is the same before and after.
    """
    if numbers.get("asr") is None:
        return None
    back = [rows for rows in RETUNED if numbers[f"asr_retuned_{rows}"] is not None]
    steps = ["before", "after", *(f"{rows} rows" for rows in back)]
    ours = ["asr_before", "asr", *(f"asr_retuned_{rows}" for rows in back)]
    clean = ["asr_clean", "asr_clean", *(f"asr_clean_retuned_{rows}" for rows in back)]
    across = [30 + 48 * i for i in range(len(steps))]
    values = [[numbers[name] for name in names] for names in (ours, clean)]
    drawn = [[(x, 100 - 90 * y) for x, y in zip(across, each, strict=True) if y is not None] for each in values]
    says = ", ".join(f"{step} {shown(value)}" for step, value in zip(steps, values[0], strict=True))
    return Curve(attack, list(zip(across, steps, strict=True)), drawn[0], drawn[1], f"ASR of {attack}: {says}")
