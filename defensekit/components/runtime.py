"""Executors, which say where a stage runs, and observers, who watch."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from defensekit.components.base import Component


@dataclass(frozen=True)
class Planned:
    """A stage that a run will need.

    ``key`` is None where it hangs on a choice that can't be known yet, ``seconds`` is what the stage took to make, None
    where it is not there yet.
    """

    title: str
    kind: str
    key: str | None
    seconds: float | None

    @property
    def cached(self) -> bool:
        """Whether it was made before."""
        return self.seconds is not None


class Observer(Component):
    """Watches a run; every method may be overridden, none has to be.

    In a study several runs go on at once: each is watched by what `for_run` gives, and no two methods are called at
    the same time.
    """

    kind: ClassVar[str] = "observer"

    def study_started(self, runs: Sequence[str], slots: int) -> None:
        """A study begins: the runs that have no result yet, in their order, ``slots`` stages at a time."""

    def for_run(self, name: str, axes: Mapping[str, Any]) -> "Observer":
        """Who watches one run of a study, with its value on every axis; this one, if it tells none apart."""
        return self

    def run_started(self, recipe: Mapping[str, Any]) -> None:
        """A run begins; its recipe, resolved, as plain data."""

    def message(self, text: str) -> None:
        """A line for the user."""

    def warning(self, text: str) -> None:
        """A line that the result keeps as well; by default it is told as a message."""
        self.message(f"warning: {text}")

    def planned(self, stages: Sequence[Planned]) -> None:
        """What the run needs, as far as it can be known before it starts; those that are cached as well."""

    def time_left(self, left: str) -> None:
        """How long the rest of a study takes, in words, told with every stage; empty if nothing is known of it."""

    def stage_started(self, title: str) -> None:
        """A stage that has to be computed begins."""

    def progress(self, title: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of the stage are done."""

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        """A stage is there; ``reused`` when it was before the run."""

    def stage_failed(self, title: str, error: str) -> None:
        """A stage could not be computed."""

    def run_finished(self, result: Mapping[str, Any]) -> None:
        """A run is done; its result, as plain data."""

    def run_failed(self, error: str) -> None:
        """A run ended without a result."""


@contextmanager
def observed_step(observers: Sequence[Observer], title: str) -> Iterator[Callable[[int, int], None]]:
    """A part of some work, for whoever watches; gives what is to be told of its progress."""
    began = time.perf_counter()

    def report(done: int, total: int) -> None:
        for observer in observers:
            observer.progress(title, done, total)

    for observer in observers:
        observer.stage_started(title)
    yield report
    for observer in observers:
        observer.stage_finished(title, time.perf_counter() - began, False)


class Workers(ABC):
    """Where stages run while an executor is open; may be called from several threads at once."""

    @property
    def slots(self) -> int:
        """How many stages run at the same time; further calls of `execute` wait."""
        return 1

    @abstractmethod
    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        """Compute one stage, given as plain data, into the store in that folder; its inputs are cached.

        `defensekit.api.compute` does the work, wherever it is called. ``report`` takes units done and their total.

        Raises:
            DefenseKitError: what went wrong; a worker that died is said to have died.
        """


class Executor(Component):
    """Says where stages run."""

    kind: ClassVar[str] = "executor"

    def machine(self) -> dict[str, Any]:
        """Device type and threads of every stage; part of what decides their numbers."""
        import torch

        return {"device": "cuda" if torch.cuda.is_available() else "cpu", "threads": torch.get_num_threads()}

    @abstractmethod
    def open(self) -> AbstractContextManager[Workers]:
        """Workers, that are there until the block ends."""
