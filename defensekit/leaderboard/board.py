"""Folders of rows, and the tracks that they are on."""

from collections.abc import Callable, Sequence
from pathlib import Path

from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.entries import load_attack
from defensekit.leaderboard.row import RECORD, record_of
from defensekit.leaderboard.tracks import ATTACK, ON, attacked, load_track, names
from defensekit.utils.errors import DefenseKitError, UsageError, listing


def rows_in(place: Path) -> list[Path]:
    """A row's folder, or those in a folder of rows (``ROWS/TRACK/ENTRY``), sorted.

    Raises:
        UsageError: there is none.
    """
    if (place / RECORD).is_file():
        return [place]
    rows = sorted(path.parent for depth in ("*", "*/*") for path in place.glob(f"{depth}/{RECORD}"))
    if not (rows := [row for row in rows if not row.name.startswith(".")]):  # a row that is being written
        raise UsageError(f"{place} is no row, and has none in it")
    return rows


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
