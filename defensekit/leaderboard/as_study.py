"""Rows of a track as a study that was run, for tables in which studies stand beside them."""

from collections.abc import Sequence
from pathlib import Path

from defensekit.leaderboard.composition import AXIS
from defensekit.leaderboard.scores import Scores, scores_in
from defensekit.result.schema import DEFENDED, Result
from defensekit.studies.folder import Folder
from defensekit.studies.frame import Finished
from defensekit.utils.files import data_digest

DEFENSE = "defense"  # the axis of entries


def studies_of(places: Sequence[Path], scratch: Path, tracks: Sequence[str] = ()) -> list[Finished]:
    """Check rows, and give those of each track, with those of attacks tried on it, as a study that is called like it.

    Args:
        places: rows, or folders of rows.
        scratch: an empty folder, for as long as the studies are in use.
        tracks: the files of tracks that are not shipped.

    Raises:
        DefenseKitError: a row is not right.
    """
    boards: dict[str, list[Scores]] = {}
    for rows in scores_in(places, tracks).values():
        for one in rows.values():
            boards.setdefault((one.track.of or one.track).name, []).append(one)
    return [_study(name, rows, scratch / name) for name, rows in boards.items()]


def _study(name: str, rows: Sequence[Scores], path: Path) -> Finished:
    folder, runs = Folder.at(path), []
    for one in rows:
        for (attack, seed), result in one.row.cells.items():
            labels = {AXIS: attack, DEFENSE: one.name}
            id = data_digest([labels, seed])[:16]
            runs.append({"id": id, "axes": labels, "seed": seed})
            folder.write(id, _result(one, result).model_copy(update={"study": name, "axes": labels}))
    attacks = dict.fromkeys(attack for one in rows for attack in one.track.attacks)
    axes = {AXIS: [*attacks], DEFENSE: [*dict.fromkeys(one.name for one in rows)]}
    folder.describe({"study": {"name": name, "matrix": axes}, "axes": axes, "runs": runs})
    return Finished(path)


def _result(scores: Scores, result: Result) -> Result:
    """What the row left stands where a study has what its defense left, also if that is the base fine-tuned anew."""
    counted = scores.row.model(result)
    name = counted if counted in DEFENDED.values() else DEFENDED["weights"]
    models = {name if model == counted else model: measured for model, measured in result.models.items()}
    return result.model_copy(update={"models": models})
