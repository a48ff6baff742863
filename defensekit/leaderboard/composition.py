"""A track and an entry as a study, which the engine runs as any other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from defensekit.leaderboard.entries import Entry, Submission
from defensekit.leaderboard.keys import UNPOISONED
from defensekit.leaderboard.tracks import Cell, Track
from defensekit.recipe.submission import CODE
from defensekit.recipe.yaml_document import Document, Path_, Place, moved, overlay, setting
from defensekit.studies.loading import Study, study_of

AXIS = "attack"
# What makes a recipe whole where only its suspects are wanted.
_NOTHING = {"scorer": "random", "selector": {"name": "fraction", "fraction": 0.0}, "purifier": ["reset"]}


def study_for(
    track: Track, entry: Entry | None, cells: Sequence[Cell] | None = None, executor: str | None = None
) -> Study:
    """The study whose runs are the cells of a row.

    Args:
        track: the track.
        entry: the defense; None for one that does nothing.
        cells: those to run; all of them, if none are named.
        executor: in place of the one that runs stages in this process, as YAML.

    Raises:
        UsageError: a key of either file is wrong; the message has its location.
    """
    study = moved(track.document, ("recipe",), ("recipe",))
    for group in ("attacks", "biases"):
        for label in getattr(track.keys, group):
            study = overlay(study, moved(track.document, (group, label), ("matrix", AXIS, label, "attack")), {})
    for label in track.keys.biases:
        study = _with(study, track.document, ("matrix", AXIS, label, "metrics"), track.keys.bias_metrics)
    if UNPOISONED in track.attacks:
        # There are no poisoned rows of which some could be had. First, so that the null stays, for the recipe.
        study = _with(study, track.document, ("matrix", AXIS, UNPOISONED), {"retuning": None})
        study = overlay(study, moved(track.document, (UNPOISONED,), ("matrix", AXIS, UNPOISONED, "attack")), {})
    study = _with(study, track.document, (), {"name": track.name, "seeds": track.keys.seeds, "keep": "suspects"})
    if entry is None:
        study = _with(study, track.document, ("recipe", "defense"), _NOTHING)
    else:
        study = overlay(study, moved(entry.document, ("defense",), ("recipe", "defense")), {})
        if (refit := defense_of(entry).get("refit")) is not None:
            study = _with(study, entry.document, ("recipe", "defense", "refit"), refit)
        study = _with(study, entry.document, ("name",), f"{track.name}.{entry.name}")
    for key in ("file", "requires"):
        study = _code(study, key, track.submissions(entry))
    study = _with(study, (entry or track).document, ("recipe", "defense", "compare"), {})
    # A row is one model: what would be reported beside it has rows of its own.
    if entry is None or entry.keys.model == "defended":
        study = _with(study, track.document, ("recipe", "baselines"), False)
    if executor is not None:
        study = overlay(study, setting(f"executor={executor}"), {})
    built = study_of(study)
    return replace(
        built, runs=[run for run in built.runs if cells is None or cell_of(run.axes, run.recipe.seed) in cells]
    )


def defense_of(entry: Entry) -> dict[str, Any]:
    """An entry's defense as it is run: of all of the defender's rows, rule or not, unless it says otherwise."""
    defense = entry.keys.defense
    of_weights = defense.get("stage", "weights") == "weights"
    return {**defense, "refit": True} if of_weights and defense.get("refit") is None else defense


def cell_of(axes: Any, seed: int) -> Cell:
    """The cell of a run."""
    return str(axes[AXIS]), seed


def _code(study: Document, key: str, submissions: Sequence[Submission[Any]]) -> Document:
    """Where the code of submissions is: the files sent with them, or the distributions that they need."""
    named = [(getattr(one.keys.plugin, key), one.document.place(("plugin", key))) for one in submissions]
    named = [(value, place) for value, place in named if value is not None]
    if not named:
        return study
    values = [value for value, _ in named]
    places: dict[Path_, Place] = {(): named[0][1], **{(i,): place for i, (_, place) in enumerate(named)}}
    path = ("recipe", CODE[key])
    return overlay(study, moved(Document(study.name, values, places), (), path), {})


def _with(below: Document, source: Document, path: Path_, value: Any, key: Path_ = ()) -> Document:
    """A document with one more value; errors about it have the location of a key of the source."""
    return overlay(below, moved(Document(source.name, value, {(): source.place(key)}), (), path), {})
