"""Purify a given model: a recipe over its base, the model and clean rows, and a folder for the result."""

import shutil
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from defensekit.components import Observer, call_component
from defensekit.defense.purification import searching
from defensekit.models import checkpoint
from defensekit.models.adapters import is_adapter
from defensekit.models.aligned import Aligned
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.config import positions
from defensekit.models.generation import NEW_TOKENS
from defensekit.models.manifest import MODEL_MANIFEST, changed_files, read_manifest, write_manifest
from defensekit.models.untrusted import free_space
from defensekit.pipeline import run_folder
from defensekit.pipeline.preflight import locating_errors
from defensekit.pipeline.run import run
from defensekit.recipe import shipped, yaml_document
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.submission import overlays
from defensekit.recipe.yaml_document import Document, option
from defensekit.result.model_card import CARD, card
from defensekit.scanner import tokenizer
from defensekit.scanner.revision import look
from defensekit.utils.errors import UsageError, listing
from defensekit.utils.files import atomic_folder, atomic_write, folder_lock, literal_path, refuse_unwritable

if TYPE_CHECKING:
    from defensekit.recipe.recipe import Recipe
    from defensekit.result.schema import Result

DEFAULT, OF_INSTRUCTIONS = "purify", "purify-llm"
# Clean rows that the defense gets: four fifths, at most so many, half of them to choose by if something is chosen. The
# rest tests.
MOST = 1024
FEWEST = 5
# The fraction that is reset where no rows choose one: a guess, and documented as one.
UNCHOSEN = 0.2


def recipe_for(
    base: str,
    suspect: Path,
    clean: str | None,
    recipe: Path | None = None,
    settings: Sequence[str] = (),
    reset_alone: bool = False,
    instructions: bool = False,
) -> "Recipe":
    """Fill a recipe of purification with its base, suspect and clean rows.

    Args:
        base: a folder, a source's name, or owner/name@revision.
        suspect: a model's folder.
        clean: a file of clean rows; None without.
        recipe: a recipe, or a leaderboard's entry, whose defense to use; the shipped recipe if none is given.
        settings: such as ``data.text=review``, laid over the recipe.
        reset_alone: use only the selection and the reset of the shipped recipe, without training. Dimensions are scored
            by curvature if there are clean rows, else by the size of the drift.
        instructions: the clean rows are instructions with responses.

    Returns:
        The recipe, loaded and checked.

    Raises:
        UsageError: one of them is not what was expected.
    """
    given: list[str | Document] = [
        option("--base", "model", base),
        option("--suspect", "suspect", literal_path(suspect)),
        *(["data.name=instructions"] if instructions else []),
        *([option("--clean", "data.path" if instructions else "data.name", clean)] if clean else []),
        *("attack=", "training=", "data.train="),  # of a recipe that makes its suspect
    ]
    if reset_alone and recipe is None:
        given += ["defense.purifier=[reset]", f"defense.selector={{name: fraction, fraction: {UNCHOSEN}}}"]
        by_curvature = clean and not is_adapter(suspect)
        given += (
            ["defense.estimator=fisher", "defense.scorer=diffusion"] if by_curvature else ["defense.scorer=magnitude"]
        )
    if recipe is not None and (of_entry := overlays(yaml_document.read(recipe))):
        recipe, given = None, ["defense=", *of_entry, *given]  # with as many rows as the shipped recipe would take
    path = recipe or shipped.folder() / f"{OF_INSTRUCTIONS if instructions else DEFAULT}.yaml"
    loaded = load_recipe(path, [*given, *settings])
    if recipe is not None:
        return loaded
    max_length = locating_errors(loaded, "model", lambda: _max_length(loaded))
    given.append(f"data.max_length={max_length}")
    if not reset_alone and not any(setting.startswith(("data.clean=", "data.dev=")) for setting in settings):
        share = locating_errors(loaded, "data", lambda: _share(loaded))
        halved = loaded.choose or loaded.detectors or loaded.refit
        given += [f"data.clean={share // 2}", f"data.dev={share // 2}"] if halved else [f"data.clean={share}"]
    return load_recipe(path, [*given, *settings])


def _max_length(recipe: "Recipe") -> int:
    """The recipe's `max_length`, unless its base has fewer positions, less those of an answer."""
    source = recipe.model.component
    own, answer = recipe.sizes.max_length, NEW_TOKENS if recipe.task == "generation" else 0
    limit = positions(Checkpoint(call_component(source, source.folder)))
    return min(own, limit - answer) if limit else own


def _share(recipe: "Recipe") -> int:
    """The number of clean rows that the defense gets: four fifths, or what a number of test rows leaves."""
    source = recipe.data.component
    dataset = call_component(source, source.load)
    if (rows := len({row.key for row in dataset.train})) < FEWEST:
        raise UsageError(f"expected at least {FEWEST} clean rows, got {rows}")
    return min(MOST, rows * 4 // 5 if recipe.sizes.test is None else max(rows - recipe.sizes.test, 1))


def writable(target: Path) -> Path:
    """A folder that is to be written, links followed, which needs a place beside it until it is whole.

    Raises:
        UsageError: something is in its way, or the system refuses.
    """
    refuse_unwritable(target)
    target = target.resolve()
    refuse_unwritable(target.parent)
    return target


def purify_into(
    target: Path,
    recipe: "Recipe",
    workspace: str | Path = "workspace",
    observers: Sequence[Observer] = (),
    keep_if_clean: bool = False,
) -> "Result":
    """Run a recipe, and write the purified model into a new folder: complete, or not at all.

    After an interruption, calling it again resumes after the last finished stage. A folder that already holds this very
    model is left as it is.

    Args:
        target: the folder to write.
        recipe: the recipe to run.
        workspace: the folder where finished stages are kept.
        observers: are notified of progress.
        keep_if_clean: write the suspect as it was, if a search tries every word and finds none.

    Returns:
        The run's result.

    Raises:
        UsageError: the defense makes no model, or does not search and is to keep what is clean; the folder holds
            something else or can't be written, another process is writing it, or the disk is too full.
        DefenseKitError: as `defensekit.run`.
    """
    if elsewhere := recipe.defense.sanitizer or recipe.defense.filter:
        location = recipe.describe_location("defense", "stage")
        does = "rewrites inputs and leaves the model as it is" if recipe.defense.sanitizer else "takes training rows"
        raise UsageError(
            f"{location}: {elsewhere.name!r} {does}:"
            " there is no purified model to write (`defensekit run` measures what it does)"
        )
    steps = [step.component for step in recipe.defense.purifier]
    if keep_if_clean and not searching(steps):
        raise UsageError("--keep-if-clean: no step of the defense searches for triggers")
    target = writable(target)
    with folder_lock(target):
        if target.exists() and not (
            target.is_dir() and (not any(target.iterdir()) or (target / MODEL_MANIFEST).is_file())
        ):
            raise UsageError(f"{target} already exists; name a new folder")
        folder = run_folder.folder_of(recipe, Path(workspace))
        if recipe.suspect and not (folder / "result.json").is_file():
            suspect = Checkpoint(Path(recipe.suspect.parameters()["path"]))
            tensors = locating_errors(recipe, "suspect", lambda: suspect.tensors)
            weights = sum(prod(entry.shape) for entry in tensors.values())
            size = sum(path.stat().st_size for path in suspect.files)
            needed = (3 if searching(steps) else 2) * size
            if not folder.exists():  # a first run keeps a model per value tried, one without reset, and the curvature
                rule = recipe.choose.component if recipe.choose else None
                tried = (len(rule.values) + 1) * (rule.folds or 1) if rule else 0
                needed += tried * size + (4 * weights if recipe.defense.estimator else 0)
            free_space(folder, needed, "the workspace")
            free_space(target, size, "the purified model")
        result = run(recipe, workspace, observers, doubts)
        made = Path(result.folder) / "purified"
        if keep_if_clean and recipe.suspect and result.models["purified"].found_nothing:
            made = _kept(result, Checkpoint(Path(recipe.suspect.parameters()["path"])), made.with_name("kept"))
        if (target / MODEL_MANIFEST).is_file():
            there, here = ({**read_manifest(folder), "files": None} for folder in (target, made))
            if there != here:  # the card may be another version's
                raise UsageError(f"{target} holds another model already; name a new folder")
            if changed := [name for name in changed_files(target) if name != CARD]:
                raise UsageError(f"{target} holds this model, but {listing(changed, 3)} is changed or gone; remove it")
            return result
        with atomic_folder(target) as part:
            shutil.copytree(made, part, dirs_exist_ok=True)
    return result


def _kept(result: "Result", suspect: Checkpoint, folder: Path) -> Path:
    """The suspect as it was, in a folder with a card and a manifest."""
    shutil.rmtree(folder, ignore_errors=True)  # an earlier run's: the suspect may have been another one
    with atomic_folder(folder) as part:
        checkpoint.copy_companions(suspect.folder, part)
        for path in [*suspect.files, *([suspect.folder / checkpoint.INDEX] if suspect.indexed else [])]:
            shutil.copyfile(path, part / path.name)
        atomic_write(part / CARD, card(result, kept=True).encode())
        write_manifest(part)
    return folder


def doubts(base: Path, suspect: Path) -> list[str]:
    """Warnings: whether the base may be another revision than the suspect's, and its tokenizer another."""
    doubt = look(Aligned(Checkpoint(base), Checkpoint(suspect)))
    warnings = [doubt] if doubt else []
    if parts := tokenizer.differences(base, suspect):
        warnings.append(
            f"the suspect's tokenizer differs from the base's ({listing(parts)}), and it is kept: no reset undoes what "
            "it does to a text"
        )
    return warnings
