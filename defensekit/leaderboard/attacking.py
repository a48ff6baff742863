"""A submitted attack tried on rows of a track: every entry is run anew, with the attack in place of the track's."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from defensekit.components import Observer
from defensekit.leaderboard.board import rows_in
from defensekit.leaderboard.entries import Attack, Entry, check_trust, load_attack, load_entry
from defensekit.leaderboard.freezing import freeze, unfrozen
from defensekit.leaderboard.redraw import interval, redrawn
from defensekit.leaderboard.row import ENTRY, record_of
from defensekit.leaderboard.running import make_row
from defensekit.leaderboard.scores import EXCESS, Scores
from defensekit.leaderboard.tracks import ATTACK, ON, Cell, Track, attacked
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.utils.files import file_digest

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Attempt:
    """A submitted attack tried on a row: what is left of it beyond the clean reference, and whether that is more.

    ``tried`` has the numbers of the entry under this attack. It lowers the row if what it ``left`` is more than the
    ``worst`` attack of the track leaves, beyond its clean reference as well, by more than chance.
    """

    attack: Attack
    tried: Scores
    left: float
    interval: tuple[float, float]
    worst: float
    lowers: bool

    @property
    def excess(self) -> float | None:
        """What is left of it, as the row's excess ASR has it."""
        return self.tried.numbers()["excess_asr"]


def attempts_on(track: Track, scores: Mapping[str, Mapping[str, Scores]]) -> list[Attempt]:
    """The submitted attacks that were tried on rows of a track, among numbers by track and row.

    Raises:
        DefenseKitError: one was tried on no row that is there, or on another entry than the row's.
    """
    rows, attempts = scores[track.name], []
    for tried in (one for others in scores.values() for one in others.values()):
        attack, folder = tried.track.attack, tried.row.folder
        if attack and tried.track.of is track:
            if tried.name not in rows:
                raise DefenseKitError(f"{folder}: there is no row of {tried.name} on {track.name}")
            attempts.append(_attempt(attack, tried, rows[tried.name]))
    return attempts


def _attempt(attack: Attack, tried: Scores, row: Scores) -> Attempt:
    tried_files, given = ({k: v for k, v in one.row.record.files.items() if "/" not in k} for one in (tried, row))
    if tried_files != given:
        raise DefenseKitError(
            f"{tried.row.folder}: the entry of {row.row.folder} is another one; remove it, and run the attack again"
        )
    attacks = dict.fromkeys(cell[0] for cell in row.paired[EXCESS])
    worst, of_worst = max((_beyond(row, name) for name in attacks), key=lambda one: one[0])
    left, drawn = _beyond(tried)
    return Attempt(attack, tried, left, interval(drawn), worst, interval(drawn - of_worst)[0] > 0)


def _beyond(scores: Scores, attack: str | None = None) -> "tuple[float, np.ndarray]":
    """What an attack leaves beyond the clean reference, and what chance does to that, (seeds, draws)."""
    ours, clean = (
        {cell: values for cell, values in each.items() if attack in (None, cell[0])}
        for each in (scores.paired[EXCESS], scores.reference)
    )
    left, of_clean = (fmean(float(values.mean()) for values in each.values()) for each in (ours, clean))
    return left - of_clean, redrawn(ours) - redrawn(clean)


def entries_of(track: Track, places: Sequence[Path]) -> list[Entry]:
    """Entries, by their files, their rows, or folders of rows; of folders those that are on the track.

    Raises:
        UsageError: there is none.
    """
    entries: list[Entry] = []
    for place in places:
        if place.is_file():
            entries.append(load_entry(place))
        else:
            entries += [load_entry(row / ENTRY) for row in rows_in(place) if record_of(row).track == track.name]
    if not entries:
        raise UsageError(f"{places[0]} has no row on {track.name}")
    return entries


def try_attack(
    track: Track,
    file: Path,
    entries: Sequence[Entry],
    workspace: Path,
    rows: Path,
    observers: Sequence[Observer] = (),
    trust: Sequence[str] = (),
    only: Sequence[str] = (),
    executor: str | None = None,
) -> Path:
    """Run entries against an attack; the attack and a row per entry go into ``rows/ATTACK-on-TRACK``.

    Args:
        track: the track.
        file: the attack's.
        entries: the defenses.
        workspace: the folder of the store and of studies.
        rows: the folder of rows.
        observers: are notified of progress.
        trust: the plugins of entries that may run, by their names.
        only: the cells to run, as ATTACK:SEED; all, if there are none.
        executor: where stages run, as YAML.

    Returns:
        The folder.

    Raises:
        UsageError: a file is wrong, a plugin is not trusted, or there is another attack of this name, or something
            else than what is to be written.
        DefenseKitError: a cell failed, or the attack's rows are not those that it was frozen with.
    """
    for entry in entries:
        check_trust(entry, trust)
    given = load_attack(file)
    folder = rows / f"{given.name}{ON}{track.name}"
    if (folder / ATTACK).is_file():
        before = load_attack(folder / ATTACK)
        plugins = [one.plugin_file and file_digest(one.plugin_file) for one in (before, given)]
        if unfrozen(before.path) != unfrozen(given.path) or plugins[0] != plugins[1]:
            raise UsageError(f"{folder} has another attack of this name: remove it, or name this one otherwise")
        given = before
    elif os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there and has no {ATTACK} with rows beside it; name other rows by --rows")
    with tempfile.TemporaryDirectory() as scratch:  # for copies, since importing a plugin writes beside it
        attack = load_attack(given.copy_into(Path(scratch) / "attack", ATTACK))
        if attack.keys.digests is None:
            freeze(attacked(track, attack), workspace, observers)
            attack = load_attack(attack.path)
        attack.copy_into(folder, ATTACK)
        tried = attacked(track, attack)
        cells: list[Cell] | None = [tried.cell(text) for text in only] or None
        for entry in entries:
            own = load_entry(entry.copy_into(Path(scratch) / entry.name, ENTRY))
            make_row(tried, own, workspace, rows, observers, cells, executor)
    return folder
