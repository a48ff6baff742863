"""A run: from a recipe to a result."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import cast

from defensekit.components import Observer
from defensekit.pipeline import run_folder
from defensekit.pipeline.assembly import ResultAssembly
from defensekit.pipeline.dry_run import requested, stages_ahead, stored
from defensekit.pipeline.experiment import Experiment, Requests
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.plan import Plan
from defensekit.pipeline.preflight import locating_errors, survey
from defensekit.pipeline.runner import Runner
from defensekit.pipeline.side_by_side import SideBySide
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.recipe import Recipe
from defensekit.result.schema import DEFENDED, ModelResult, Result
from defensekit.training import native_precision
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.files import resolved
from defensekit.utils.logging import log, logged

EXAMPLES = 10  # triggered rows that a result shows


def run(
    recipe: str | Path | Recipe,
    workspace: str | Path = "workspace",
    observers: Sequence[Observer] = (),
    doubts: Callable[[Path, Path], list[str]] | None = None,
) -> Result:
    """Run a recipe: compute every stage that is not cached, then write the result and the purified model.

    Args:
        recipe: a YAML file, or the recipe that `load_recipe` returned.
        workspace: the folder of the store and of the runs' folders.
        observers: are notified of progress.
        doubts: called with the folders of the base and of a given suspect before any stage; returns warnings.

    Returns:
        The result, which is also written to the run's folder.

    Raises:
        UsageError: the recipe, the data or a model is not what was expected; nothing was trained.
        DefenseKitError: a stage failed; finished stages are kept and reused.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    root = Path(workspace)
    folder = run_folder.folder_of(loaded, root).absolute()
    resolved(folder)  # the result, which is written last, names it
    try:
        with logged(folder / "run.log"), _opened(loaded, root, [run_folder.Log(), *observers]) as current:
            if doubts and current.plan.given_suspect:
                for text in doubts(current.plan.base.path, current.plan.given_suspect.path):
                    current.warn(text)
            result = current.result(folder)
            run_folder.write(result, current.purified, lambda stage: current.runner.make(stage).files)
            log.info("done: %s", result.summary)
            current.runner.notify("run_finished", result.model_dump())
            return result
    except OSError as error:
        raise DefenseKitError(f"{error.strerror or error}: {error.filename or root}") from error


def run_attack(
    recipe: str | Path | Recipe, workspace: str | Path = "workspace", observers: Sequence[Observer] = ()
) -> dict[str, ModelResult]:
    """Run a recipe up to its defense: the clean reference (of an attack's recipe) and the suspect, measured.

    The stages are cached in the workspace, and `run` reuses them.

    Args:
        recipe: a YAML file, or the recipe that `load_recipe` returned.
        workspace: the folder of the store.
        observers: are notified of progress.

    Returns:
        The measured models, by name: ``clean`` (for a recipe with an attack) and ``suspect``.

    Raises:
        UsageError: the recipe, the data or a model is not what was expected; nothing was trained.
        DefenseKitError: a stage failed; finished stages are kept and reused.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    with _opened(loaded, Path(workspace), observers) as current:
        current.make(Experiment.before_defense)
        return current.assembly.models


@contextmanager
def _opened(recipe: Recipe, workspace: Path, observers: Sequence[Observer]) -> "Iterator[Run]":
    """Open the workers of a recipe and plan its run; notify observers of a failure."""
    watching = [*observers, *(named.component for named in recipe.observers)]
    store = Store(workspace / "store")
    with recipe.executor.component.open() as workers:
        runner = (Runner if workers.slots == 1 else SideBySide)(store, workers, watching)
        runner.notify("run_started", recipe.resolved())
        try:
            store.sweep()
            plan = survey(recipe, partial(runner.notify, "message"))
            runner.notify("planned", stages_ahead(plan, store))
            yield Run(plan, runner)
        except Exception as error:
            runner.notify("run_failed", str(error))
            raise


class Run:
    """One run of a recipe: its plan, and the runner that computes its stages."""

    def __init__(self, plan: Plan, runner: Runner) -> None:
        self.recipe = plan.recipe
        self.plan = plan
        self.runner = runner
        self.experiment = Experiment(plan, partial(runner.notify, "message"), self.warn)
        self.warnings: list[str] = []
        self.assembly = ResultAssembly(self.experiment, runner)
        for problem in self.recipe.host.problems:
            self.warn(str(problem))
        if self.recipe.precision == "bfloat16" != native_precision():
            self.warn("this machine emulates bfloat16, many times slower than float32; `precision: auto` avoids that")

    def result(self, folder: Path, examples: int = EXAMPLES) -> Result:
        """Compute every stage that is not cached, and assemble the result.

        Args:
            folder: the folder that the result will be written to.
            examples: how many triggered test rows the result shows.

        Returns:
            The result; nothing is written.

        Raises:
            UsageError: the data have no label that the attack aims at.
            DefenseKitError: a stage or a metric failed.
        """
        self.make(Experiment.requests)
        for with_what, count in self.runner.made_otherwise.items():  # versions are part of no key
            of = f"{count} of {len(self.runner.records)} stages"
            self.warn(f"{of} were made with {with_what} and not computed again: numbers may be others than anew")
        return self.assembly.result(folder, self.warnings, examples)

    @property
    def purified(self) -> Stage | None:
        """The stage of the purified model; None for a defense without one."""
        ended = DEFENDED[self.recipe.defense.stage]
        return cast(Stage, self.experiment.models[ended].defended.model) if ended == "purified" else None

    def make(self, asked_of: Callable[[Experiment], Requests]) -> None:
        """Compute every requested stage, and measure each model as soon as its predictions are computed.

        Args:
            asked_of: gives the requests of an experiment.

        Raises:
            DefenseKitError: a stage or a metric failed.
        """
        with (
            self.runner.ahead(partial(self._ahead, asked_of)) if isinstance(self.runner, SideBySide) else nullcontext()
        ):
            self._make(asked_of(self.experiment))

    def _make(self, requests: Requests) -> None:
        artifact = None
        while True:
            try:
                request = requests.send(artifact)
            except StopIteration:
                self.assembly.measure()
                return
            self.assembly.measure()  # an error of a metric ends the run before the next model is computed
            make = partial(self.runner.make, cast(Stage, request.stage))  # in a run, every requested stage is known
            artifact = locating_errors(self.recipe, request.recipe_key, make) if request.recipe_key else make()

    def _ahead(self, asked_of: Callable[[Experiment], Requests]) -> list[Stage]:
        """The stages that will be requested for certain, as far as they follow from what is in the store."""
        answer = partial(stored, self.runner.store)
        if not answer(self.plan.rows("test")):
            return []  # their labels are part of other stages
        requests = asked_of(Experiment(self.plan, certain=True))
        return [request.stage for request in requested(requests, answer) if request.stage]

    def warn(self, text: str) -> None:
        """Notify observers of a warning, and keep it for the result."""
        self.warnings.append(text)
        self.runner.notify("warning", text)
