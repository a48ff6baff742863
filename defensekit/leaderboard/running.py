"""Making the suspects of a track, and a row of it: the engine's studies, and a folder of what they found."""

import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from defensekit.components import Observer
from defensekit.leaderboard.answers import FOLDER, answers_file, packed_answers
from defensekit.leaderboard.composition import cell_of, study_for
from defensekit.leaderboard.entries import Entry
from defensekit.leaderboard.freezing import check_frozen
from defensekit.leaderboard.identity import parts_of
from defensekit.leaderboard.row import (
    ENTRY,
    RECORD,
    VERIFICATIONS,
    RowRecord,
    cell_file,
    models_of,
    pack,
    read_row,
    written,
)
from defensekit.leaderboard.tracks import Cell, Track
from defensekit.pipeline.store import Store
from defensekit.result.schema import Result, read_result
from defensekit.studies.folder import Folder
from defensekit.studies.loading import Study
from defensekit.studies.running import run_study
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.utils.files import (
    atomic_write,
    file_digest,
    file_digests,
    folder_lock,
    refuse_unwritable,
    scratch_folder,
)


def make_suspects(
    track: Track, workspace: Path, observers: Sequence[Observer] = (), executor: str | None = None
) -> list[Result]:
    """Make every suspect and clean reference of a track, and ask them; rows made in the workspace start from these.

    Returns:
        A result per cell, of a defense that does nothing.

    Raises:
        DefenseKitError: base, data or rows are not the track's, or a cell failed.
    """
    check_frozen(track, track.cells, workspace, observers)
    return list(_results(study_for(track, None, executor=executor), workspace, observers).values())


def make_row(
    track: Track,
    entry: Entry,
    workspace: Path,
    rows: Path,
    observers: Sequence[Observer] = (),
    cells: Sequence[Cell] | None = None,
    executor: str | None = None,
) -> Path:
    """Run an entry on a track, and write its row into ``rows/TRACK/ENTRY``.

    What is in the workspace is not computed again, so that the same call goes on after any interruption.

    Args:
        track: the track.
        entry: the entry.
        workspace: the folder of the store and of studies.
        rows: the folder that rows go into.
        observers: are notified of progress.
        cells: those to run; all, if none are named. A row of some is no whole row.
        executor: where stages run, as YAML.

    Returns:
        The row's folder.

    Raises:
        UsageError: a key of the entry is wrong, the track is not frozen, or there is something else than a row of this
            very entry, or one of more cells.
        DefenseKitError: base, data or rows are not the track's, or a cell failed.
    """
    study = study_for(track, entry, cells, executor)
    target = rows / track.name / entry.name
    _refuse_other(target, entry, cells)
    check_frozen(track, cells or track.cells, workspace, observers)
    results = _results(study, workspace, observers)
    with folder_lock(target):
        _refuse_other(target, entry, cells)  # what was put there meanwhile
        _write(track, entry, results, Store(workspace / "store"), target)
    return target


def _refuse_other(target: Path, entry: Entry, cells: Sequence[Cell] | None) -> None:
    """Refuse to replace anything but a whole row of the very same entry, with no more cells than are asked for."""
    refuse_unwritable(target.parent)
    if not os.path.lexists(target):
        return
    try:
        row = read_row(target)
    except DefenseKitError as error:
        raise UsageError(f"{target} is there and is no row ({error}); name other rows by --rows") from error
    files = [file for file in (entry.path, entry.plugin_file) if file]
    own = {ENTRY if file is entry.path else file.name: file_digest(file) for file in files}
    if own != {name: digest for name, digest in row.record.files.items() if "/" not in name}:
        raise UsageError(
            f"{target} is a row of another entry, or of an older version of this one; remove it, or name other rows by "
            "--rows"
        )
    if cells and row.cells.keys() - {*cells}:
        raise UsageError(f"{target} has cells that were not asked for, and would lose them; name other rows by --rows")


def _results(study: Study, workspace: Path, observers: Sequence[Observer]) -> dict[Cell, Result]:
    """Run a study's cells that have no result yet; their results."""
    outcome = run_study(study, workspace, observers)
    folder, store = Folder.at(outcome.folder), Store(workspace / "store")
    if outcome.failed:
        first = next(iter(outcome.failed.values()))
        raise DefenseKitError(f"{len(outcome.failed)} of {outcome.runs} cells failed; the first: {first}")
    results = _read(folder)
    if not all(store.has(key) for result in results.values() for key in _answers(result)):  # the store was pruned
        run_study(study, workspace, observers, "always")
        results = _read(folder)
    return results


def _read(folder: Folder) -> dict[Cell, Result]:
    runs = folder.read()["runs"]
    return {cell_of(run["axes"], run["seed"]): read_result(folder.results / f"{run['id']}.json") for run in runs}


def _answers(result: Result) -> set[str]:
    return {key for model in result.models.values() for key in model.predictions.values()}


def _write(track: Track, entry: Entry, results: dict[Cell, Result], store: Store, target: Path) -> None:
    """Write a row beside its place, and put it there whole; verifications of what was there stay."""
    with scratch_folder(target) as scratch:
        part = scratch / "row"
        part.mkdir()
        _fill(part, track, entry, results, store)
        if (target / VERIFICATIONS).is_dir():
            shutil.copytree(target / VERIFICATIONS, part / VERIFICATIONS)
        if target.exists():
            target.rename(scratch / "old")  # killed before the next line, there is no row: the same call makes it again
        part.rename(target)


def _fill(part: Path, track: Track, entry: Entry, results: dict[Cell, Result], store: Store) -> None:
    (part / FOLDER).mkdir()
    shutil.copyfile(entry.path, part / ENTRY)
    if entry.plugin_file:
        shutil.copyfile(entry.plugin_file, part / entry.plugin_file.name)
    for cell, result in results.items():
        kept = _kept(entry, result)
        atomic_write(part / cell_file(cell), kept.model_dump_json(indent=1).encode() + b"\n")
        for key in _answers(kept):
            (part / answers_file(key)).write_bytes(packed_answers(store.open(key).files))
    record = RowRecord(track=track.name, track_digest=track.digest, entry=entry.name, files=file_digests(part))
    atomic_write(part / RECORD, written(record))
    pack(part)


def _kept(entry: Entry, result: Result) -> Result:
    """A result with nothing in it that its answers can't show again, and no path of this machine."""
    names = models_of(entry, result)
    plugins = [
        plugin if plugin.version else plugin.model_copy(update={"distribution": "."})
        for plugin in result.environment.plugins
    ]
    return result.model_copy(
        update={
            "models": {name: model for name, model in result.models.items() if name in names},
            "summary": {name: numbers for name, numbers in result.summary.items() if name in names},
            "curve": [],
            "examples": [],
            "folder": "",
            "recipe": _placeless(result.recipe, result.identified["parts"]),
            "environment": result.environment.model_copy(update={"plugins": plugins}),
        }
    )


def _placeless(recipe: dict[str, Any], identified: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose parameters that say where something is, and not what, are names without folders."""
    recipe = copy.deepcopy(recipe)
    for key, given in parts_of(recipe):
        for name in given.keys() - identified[key]["parameters"].keys() - {"name", "rule", "model"}:
            value = given[name]
            given[name] = [_name(item) for item in value] if isinstance(value, list) else _name(value)
    if "plugins" in recipe:
        recipe["plugins"] = [_name(path) for path in recipe["plugins"]]
    return recipe


def _name(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) else value
