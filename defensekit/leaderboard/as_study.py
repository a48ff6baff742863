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


def studies_of(place: Path, scratch: Path, tracks: Sequence[str] = ()) -> list[Finished]:
    """Check rows, and give those of each track as a study that is called like it.

    Args:
        place: a row, or a folder of rows.
        scratch: an empty folder, for as long as the studies are in use.
        tracks: the files of tracks that are not shipped.

    Raises:
        DefenseKitError: a row is not right.
    """
    return [_study(name, list(rows.values()), scratch / name) for name, rows in scores_in([place], tracks).items()]


def _study(name: str, rows: Sequence[Scores], path: Path) -> Finished:
    folder, runs = Folder.at(path), []
    for one in rows:
        for (attack, seed), result in one.row.cells.items():
            labels = {AXIS: attack, DEFENSE: one.name}
            id = data_digest([labels, seed])[:16]
            runs.append({"id": id, "axes": labels, "seed": seed})
            folder.write(id, _result(one, result).model_copy(update={"study": name, "axes": labels}))
    axes = {AXIS: rows[0].track.attacks, DEFENSE: [one.name for one in rows]}
    folder.describe({"study": {"name": name, "matrix": axes}, "axes": axes, "runs": runs})
    return Finished(path)


def _result(scores: Scores, result: Result) -> Result:
    """What the row left stands where a study has what its defense left, also if that is the base fine-tuned anew."""
    counted = scores.row.model(result)
    name = counted if counted in DEFENDED.values() else DEFENDED["weights"]
    models = {name if model == counted else model: measured for model, measured in result.models.items()}
    return result.model_copy(update={"models": models})
