"""An observer that remembers what was computed, and workers that compute two stages at once."""

import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from defensekit.components import Executor, Observer, Workers
from defensekit.pipeline.executors import compute
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.recipe import NamedComponent, Recipe
from defensekit.result.schema import Result


class Watching(Observer):
    """Remembers what was computed."""

    def stage_started(self, title: str) -> None:
        COMPUTED.append(title)


COMPUTED: list[str] = []


class Two(Workers):
    """Two stages at once, which compute in turn: torch's random state is the process's."""

    slots = 2

    def __init__(self, before: Callable[[str], None] = lambda title: None) -> None:
        self.before = before
        self.begun: dict[str, int] = {}  # titles, and the threads that asked for them
        self.turn = threading.Lock()

    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        self.begun[stage["title"]] = threading.get_ident()
        self.before(stage["title"])
        with self.turn:
            compute(stage, store, report)

    def take(self, recipe: Path) -> Recipe:
        """The recipe, with its stages computed here."""
        workers = self

        class Opened(Executor):
            def open(self) -> AbstractContextManager[Workers]:
                return nullcontext(workers)

        return replace(load_recipe(recipe), executor=NamedComponent("auto", Opened()))


def workspace_without(finished: tuple[Path, Path, Result], folder: Path, *beginnings: str) -> Path:
    """A copy of a finished run's workspace, without the stages whose titles begin so."""
    copy = Path(shutil.copytree(finished[1], folder))
    for stage in finished[2].stages:
        if stage.title.startswith(beginnings):
            Store(copy / "store").remove(stage.key)
    return copy


def timeless(thing: Any) -> Any:
    """Plain data without times, and without what was cached."""
    if isinstance(thing, dict):
        left_out = ("seconds", "milliseconds", "peak_memory", "reused", "folder")
        return {key: timeless(value) for key, value in thing.items() if key not in left_out}
    return [timeless(one) for one in thing] if isinstance(thing, list) else thing
