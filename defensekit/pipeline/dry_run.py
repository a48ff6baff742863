"""What a run would do: its stages, and which of them the store has. Nothing is computed."""

from collections.abc import Callable
from pathlib import Path

from defensekit.components import Planned
from defensekit.pipeline.experiment import Experiment, Request, Requests
from defensekit.pipeline.plan import Plan, Stage
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.store import Artifact, Damaged, Store
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.recipe import Recipe


def preview(
    recipe: str | Path | Recipe, workspace: str | Path = "workspace", say: Callable[[str], None] = lambda text: None
) -> list[Planned]:
    """The stages of a run in a workspace, in the order they would be made.

    Models and data that the recipe names are looked at, and fetched where they are not here yet.

    Raises:
        UsageError: a model or the data are not what was expected.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return stages_ahead(survey(loaded, say), Store(Path(workspace) / "store"))


def stages_ahead(plan: Plan, store: Store) -> list[Planned]:
    """The stages of a plan; those that depend on a choice that can't be known yet have no key."""
    found: dict[str, Planned] = {}

    def stored(stage: Stage) -> Artifact | None:
        try:
            return store.open(stage.key) if store.has(stage.key) else None
        except Damaged:
            return None

    def visit(stage: Stage) -> None:
        """A stage, after the inputs that it needs where it is not there itself."""
        if stage.key in found:
            return
        artifact = stored(stage)
        if artifact is None:
            for needed in stage.inputs:
                visit(needed)
        seconds = artifact.seconds if artifact else None
        found[stage.key] = Planned(stage.plain["title"], stage.plain["kind"], stage.key, seconds)

    asked = requested(Experiment(plan).requests(), stored)
    for request in asked:
        if request.stage:
            visit(request.stage)
    return [*found.values(), *(Planned(one.title, one.kind, None, None) for one in asked if not one.stage)]


def requested(requests: Requests, stored: Callable[[Stage], Artifact | None] = lambda stage: None) -> list[Request]:
    """Every request of a run, each answered with what is stored and nothing computed."""
    asked: list[Request] = []
    artifact = None
    try:
        while True:
            asked.append(requests.send(artifact))
            stage = asked[-1].stage
            artifact = stored(stage) if stage else None
    except StopIteration:
        return asked
