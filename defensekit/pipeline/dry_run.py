"""The stages of a run, and which of them are cached, without computing anything."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from defensekit.components import Planned
from defensekit.pipeline.experiment import Experiment, Request, Requests
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.plan import Plan
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.store import Artifact, Damaged, Store
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.recipe import Recipe


def preview(
    recipe: str | Path | Recipe, workspace: str | Path = "workspace", say: Callable[[str], None] = lambda text: None
) -> list[Planned]:
    """List the stages of a run, in the order of computation.

    Models and data that the recipe names are read, and downloaded if they are not here yet.

    Args:
        recipe: a recipe, or the path of one.
        workspace: the folder where finished stages are kept.
        say: takes lines for the user.

    Returns:
        The stages; each says whether it is cached.

    Raises:
        UsageError: a model or the data are not what was expected.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return stages_ahead(survey(loaded, say), Store(Path(workspace) / "store"))


def stages_ahead(plan: Plan, store: Store) -> list[Planned]:
    """The stages of a plan; those that depend on an unknown choice have no key."""
    planned: dict[str, Planned] = {}

    def visit(stage: Stage) -> None:
        """Add a stage, after its inputs unless it is cached."""
        if stage.key in planned:
            return
        artifact = stored(store, stage)
        if artifact is None:
            for needed in stage.inputs:
                visit(needed)
        seconds = artifact.seconds if artifact else None
        planned[stage.key] = Planned(stage.plain["title"], stage.plain["kind"], stage.key, seconds)

    asked = requested(Experiment(plan).requests(), partial(stored, store))
    for request in asked:
        if request.stage:
            visit(request.stage)
    return [*planned.values(), *(Planned(one.title, one.kind, None, None) for one in asked if not one.stage)]


def stored(store: Store, stage: Stage) -> Artifact | None:
    """The artifact of a stage; None if it is not there, or damaged."""
    try:
        return store.open(stage.key) if store.has(stage.key) else None
    except Damaged:
        return None


def requested(requests: Requests, answer: Callable[[Stage], Artifact | None] = lambda stage: None) -> list[Request]:
    """Every request of a run, each answered without computing."""
    asked: list[Request] = []
    artifact = None
    try:
        while True:
            asked.append(requests.send(artifact))
            stage = asked[-1].stage
            artifact = answer(stage) if stage else None
    except StopIteration:
        return asked
