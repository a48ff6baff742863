"""A track and its rows, as the board has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase
from typing import Any

from defensekit.leaderboard.attacking import Attempt
from defensekit.leaderboard.columns import COLUMNS, Column
from defensekit.leaderboard.entries import Attack
from defensekit.leaderboard.keys import UNPOISONED
from defensekit.leaderboard.ties import Standing, Standings
from defensekit.leaderboard.tracks import Track

# The trivial baselines that every track should have a row of, by the names of their entries.
BASELINES: Mapping[str, str] = {
    "nothing": "nothing done",
    "fine-tuning": "fine-tuned only",
    "random-reset": "random reset",
    "from-base": "base fine-tuned anew",
}


@dataclass(frozen=True)
class TrackTable:
    """A track and its rows, as they stand; ``host`` is the keeper, whose verifications count as the host's."""

    track: Track
    standings: Standings
    host: str | None
    attempts: Sequence[Attempt]  # of submitted attacks

    def attempts_at(self, name: str) -> list[Attempt]:
        """Those on a row; those that lower it first."""
        return sorted((one for one in self.attempts if one.tried.name == name), key=lambda one: not one.lowers)

    @property
    def submitted(self) -> dict[str, Attack]:
        """The attacks that were submitted, by name."""
        return {one.attack.name: one.attack for one in self.attempts}

    @property
    def attacks(self) -> dict[str, str]:
        """The track's attacks, each with its kind: backdoor, bias or innocent."""
        kinds = [(self.track.keys.attacks, "backdoor"), (self.track.keys.biases, "bias"), ([UNPOISONED], "innocent")]
        return {attack: kind for attacks, kind in kinds for attack in attacks}

    @cached_property
    def titles(self) -> dict[str, str]:
        """What the rows are called, by name."""
        return {one.scores.name: one.scores.row.entry.keys.title for one in self.standings.rows}

    @property
    def missing(self) -> list[str]:
        """The trivial baselines that there is no row of."""
        there = {one.scores.name for one in self.standings.rows if one.scores.row.entry.keys.baseline}
        return [what for name, what in BASELINES.items() if name not in there]

    @cached_property
    def measured(self) -> dict[str, Column]:
        """The columns that some row has a number in."""
        numbers = [one.scores.numbers() for one in self.standings.rows]
        return {name: column for name, column in COLUMNS.items() if any(one[name] is not None for one in numbers)}

    @property
    def columns(self) -> dict[str, Column]:
        """Those of them that the board shows."""
        return {name: column for name, column in self.measured.items() if column.board}

    def record(self, standing: Standing) -> dict[str, Any]:
        """A row as flat data."""
        scores, keys = standing.scores, standing.scores.row.entry.keys
        return {
            "track": self.track.name,
            "track_digest": self.track.digest,
            "name": scores.name,
            "title": keys.title,
            "group": letters(standing.group),
            **scores.numbers(),
            "excess_asr_low": standing.interval[0],
            "excess_asr_high": standing.interval[1],
            "needs": ", ".join(keys.needs) or "nothing",
            "badge": scores.badge(self.host),
            "baseline": keys.baseline,
            "of_one_answer": len(scores.of_one_answer),
            "no_better_than": ", ".join(standing.no_better_than),
            "lowered_by": ", ".join(one.attack.name for one in self.attempts_at(scores.name) if one.lowers),
        }


def letters(group: int) -> str:
    """What a group is called: A to Z, then AA, AB and so on."""
    more, last = divmod(group, len(ascii_uppercase))
    return (letters(more - 1) if more else "") + ascii_uppercase[last]
