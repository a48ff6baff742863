"""Folders of rows, and the tracks that they are on."""

from collections.abc import Callable
from pathlib import Path

from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.row import RECORD, record_of
from defensekit.leaderboard.tracks import load_track, names
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


def checkers(track: str | None = None) -> Callable[[Path], Checker]:
    """What checks a row by its folder: one for each track, which knows what rows of it share.

    Args:
        track: the file of a track that is not shipped.
    """
    other = Checker(load_track(track)) if track else None
    known = {other.track.name: other} if other else {}

    def checker(folder: Path) -> Checker:
        name = record_of(folder).track
        if name not in known:
            if name not in names():
                shipped = f"shipped: {listing(names())}"
                raise DefenseKitError(
                    f"{folder}: its track {name[:80]!r} is not known ({shipped}); --track names its file"
                )
            known[name] = Checker(load_track(name))
        return known[name]

    return checker
