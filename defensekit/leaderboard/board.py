"""Folders of rows, and the tracks that they are on."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.entries import load_attack
from defensekit.leaderboard.row import RECORD, record_of
from defensekit.leaderboard.tracks import ATTACK, ON, attacked, load_track, names
from defensekit.utils.errors import DefenseKitError, UsageError, listing


def rows_in(place: Path) -> list[Path]:
    """A row's folder, or those in a folder of rows (``ROWS/TRACK/ENTRY``), sorted.

    What is hidden is passed over: rows that are being written.

    Raises:
        UsageError: there is none.
        DefenseKitError: something there is neither a row, nor a submitted attack beside the rows that it was tried on.
    """
    if _is_row(place):
        return [place]
    groups = [path for path in _inside(place) if _holds_rows(path)]
    rows: list[Path] = []
    others: list[Path] = []
    for folder in (place, *groups):
        of_attack = set() if folder == place and groups else _attack_in(folder)
        for path in _inside(folder):
            if _is_row(path):
                rows.append(path)
            elif path not in groups and path not in of_attack:
                others.append(path)
    if others:
        named = [f"{one.relative_to(place)}{f' (it has no {RECORD})' if one.is_dir() else ''}" for one in others]
        raise DefenseKitError(f"{place}: expected rows and nothing else; no row is {listing(named)}")
    if not rows:
        raise UsageError(f"{place} is no row, and has none in it")
    return sorted(rows)


def _inside(folder: Path) -> list[Path]:
    """What is in a folder and is not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _is_row(folder: Path) -> bool:
    """Whether a folder is meant as a row: whatever its record is, a check says what is wrong with it."""
    return os.path.lexists(folder / RECORD)


def _holds_rows(folder: Path) -> bool:
    return os.path.lexists(folder / ATTACK) or any(map(_is_row, _inside(folder)))


def _attack_in(folder: Path) -> set[Path | None]:
    """The files of the attack that was tried on a folder's rows, if there is one."""
    path = folder / ATTACK
    return {path, load_attack(path).plugin_file} if os.path.lexists(path) else set()


def checkers(tracks: Sequence[str] = ()) -> Callable[[Path], Checker]:
    """What checks a row by its folder: one for each track, which knows what rows of it share.

    An attack that was submitted is beside the rows that it was tried on.

    Args:
        tracks: the files of tracks that are not shipped.

    Raises:
        UsageError: two of the files are of one name.
    """
    known: dict[str, Checker] = {}
    for file in tracks:
        own = load_track(file)
        if own.name in known:
            raise UsageError(f"--track {file}: another file is of the track {own.name} as well")
        known[own.name] = Checker(own)
    tried: dict[Path, Checker] = {}

    def named(folder: Path, name: str) -> Checker:
        if name not in known:
            if name not in names():
                shipped = f"shipped: {listing(names())}"
                raise DefenseKitError(
                    f"{folder}: its track {name[:80]!r} is not known ({shipped}); --track names its file"
                )
            known[name] = Checker(load_track(name))
        return known[name]

    def checker(folder: Path) -> Checker:
        name, path = record_of(folder).track, folder.absolute().parent / ATTACK
        if not path.is_file():
            return named(folder, name)
        if path not in tried:
            attack = load_attack(path)
            tried[path] = Checker(attacked(named(folder, name.removeprefix(f"{attack.name}{ON}")).track, attack))
        return tried[path]

    return checker
