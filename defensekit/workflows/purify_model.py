"""Purify a given model: with training and measurements, or by a reset alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from defensekit.components import Observer
from defensekit.host.instructions import holds_instructions
from defensekit.models.adapter_merge import merged
from defensekit.models.adapters import is_adapter
from defensekit.models.checkpoint import CAUSAL, Checkpoint
from defensekit.models.skeleton import task_of
from defensekit.pipeline.store import refuse_inside_store
from defensekit.recipe.recipe import Recipe
from defensekit.recipe.resolve import model_folder, written
from defensekit.result.schema import Result
from defensekit.utils.errors import UsageError
from defensekit.utils.files import environment_path, refuse_inside, there
from defensekit.workflows.purify import purify_into, recipe_for, writable
from defensekit.workflows.reset import ResetResult, reset_into


@dataclass(frozen=True)
class Purification:
    """A planned purification: the recipe, and whether the model is reset alone, without training."""

    target: Path
    recipe: Recipe
    reset_alone: bool
    adapter_only: bool
    measured: bool
    keep_if_clean: bool = False

    def run(self, workspace: str | Path, observers: Sequence[Observer]) -> Result | ResetResult:
        """Carry it out; see `purify_model`."""
        if self.reset_alone:
            return reset_into(self.target, self.recipe, observers, self.adapter_only, self.measured)
        return purify_into(self.target, self.recipe, workspace, observers, self.keep_if_clean)


def prepare(
    base: str,
    suspect: Path,
    target: Path,
    clean: str | None = None,
    *,
    recipe: Path | None = None,
    settings: Sequence[str] = (),
    adapter_only: bool = False,
    keep_if_clean: bool = False,
    workspace: str | Path = "workspace",
    say: Callable[[str], None] = lambda text: None,
) -> Purification:
    """Decide how to purify a model, and check the inputs.

    Arguments are those of `purify_model`; ``say`` takes lines for the user.

    Raises:
        UsageError: a model, the rows or the recipe are not what was expected.
    """
    suspect = there(str(suspect), environment_path(str(suspect)))
    if adapter_only and not is_adapter(suspect):
        raise UsageError(f"--adapter-only: {suspect} holds no adapter (adapter_config.json)")
    refuse_inside_store(target)
    for named, folder in (("the suspect", suspect), ("the base", environment_path(base))):
        if folder.is_dir():
            refuse_inside(target, folder, named)
    writable(target)
    whole = suspect
    if is_adapter(suspect) and not adapter_only:
        whole = merged(model_folder(base), suspect, Path(workspace), say)
    causal = _task(whole) == CAUSAL if not adapter_only else False
    instructions = causal and clean is not None and holds_instructions(environment_path(clean))
    alone = clean is None or adapter_only or (causal and not instructions)
    if alone and keep_if_clean:
        raise UsageError("--keep-if-clean: nothing is searched without clean labelled rows or instructions")
    loaded = recipe_for(base, whole, clean, recipe, settings, reset_alone=alone, instructions=instructions)
    return Purification(target, loaded, alone, adapter_only, clean is not None, keep_if_clean)


def _task(suspect: Path) -> str:
    try:
        return task_of(Checkpoint(suspect))
    except UsageError as error:
        raise UsageError(f"--suspect: {error}") from error


def purify_model(
    base: str | Path,
    suspect: str | Path,
    target: str | Path,
    clean: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    adapter_only: bool = False,
    keep_if_clean: bool = False,
    workspace: str | Path = "workspace",
    observers: Sequence[Observer] = (),
) -> Result | ResetResult:
    """Purify a model, into a folder that loads wherever the model did.

    With clean rows, what triggers a classifier is searched, its base is trained on what it says of variations of the
    rows, in which triggers hardly occur, and both are measured on other rows. A causal language model is reset by
    drift over curvature and fine-tuned, where the rows are instructions with responses. Without rows, with plain texts,
    and for an adapter alone, the dimensions that drifted furthest are reset and nothing is trained.

    Args:
        base: the model that it was fine-tuned from: a folder, a source's name, or owner/name@revision.
        suspect: the folder of the model that is not trusted, or of a PEFT adapter on the base.
        target: the folder to write, which must be empty or not exist.
        clean: a file of clean rows (CSV, TSV, JSON, JSONL, Parquet), or a data source's name.
        recipe: a recipe, or a leaderboard's entry, whose defense is used in place of the shipped one.
        settings: such as ``data.label=stars``, laid over the recipe.
        adapter_only: purify an adapter's own weights: what comes out is an adapter.
        keep_if_clean: write the suspect as it was, if a search tries every word and finds none.
        workspace: the folder where finished stages are kept.
        observers: are notified of progress.

    Returns:
        The result of a run, or of a reset where nothing was trained.

    Raises:
        UsageError: a model, the rows or the recipe are not what was expected, or the folder holds something else.
        DefenseKitError: a stage failed; what was finished before is kept.
    """
    prepared = prepare(
        str(written(base)),
        Path(suspect),
        Path(target),
        None if clean is None else str(written(clean)),
        recipe=None if recipe is None else Path(recipe),
        settings=settings,
        adapter_only=adapter_only,
        keep_if_clean=keep_if_clean,
        workspace=workspace,
    )
    return prepared.run(workspace, observers)
