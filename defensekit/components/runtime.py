"""Executors, which run stages, and observers, which are notified of progress."""

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

    Attributes:
        title: what the stage computes, for people.
        kind: the kind of stage.
        key: the stage's key; None where it depends on a choice that is not known yet.
        seconds: how long the cached stage took to compute; None where it is not cached.
    """

    title: str
    kind: str
    key: str | None
    seconds: float | None

    @property
    def cached(self) -> bool:
        """Whether the stage is cached."""
        return self.seconds is not None


class Observer(Component):
    """Is notified of what a run does; override any of the methods.

    In a study several runs go on at once: each notifies the observer that `for_run` returns for it. No two methods are
    called at the same time.
    """

    kind: ClassVar[str] = "observer"

    def study_started(self, runs: Sequence[str], slots: int) -> None:
        """A study begins.

        Args:
            runs: the names of the runs that have no result yet, in order.
            slots: how many stages run at the same time.
        """

    def for_run(self, name: str, axes: Mapping[str, Any]) -> "Observer":
        """The observer of one run of a study.

        Args:
            name: the name of the run.
            axes: the run's value on every axis.

        Returns:
            An observer of its own for the run, or this one.
        """
        return self

    def run_started(self, recipe: Mapping[str, Any]) -> None:
        """A run begins.

        Args:
            recipe: the resolved recipe, as plain data.
        """

    def message(self, text: str) -> None:
        """Show a line to the user.

        Args:
            text: the line.
        """

    def warning(self, text: str) -> None:
        """Show a warning, which is also part of the result; by default it is shown as a message.

        Args:
            text: the warning.
        """
        self.message(f"warning: {text}")

    def planned(self, stages: Sequence[Planned]) -> None:
        """The stages that the run needs, as far as they are known before it starts.

        Args:
            stages: the stages, cached ones included.
        """

    def time_left(self, left: str) -> None:
        """The estimated time until the end of a study; called with every stage.

        Args:
            left: the time in words; empty if it can't be estimated.
        """

    def stage_started(self, title: str) -> None:
        """A stage that is not cached begins.

        Args:
            title: the stage's title.
        """

    def progress(self, title: str, done: int, total: int) -> None:
        """A stage made progress.

        Args:
            title: the stage's title.
            done: how many units are done.
            total: how many units there are.
        """

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        """A stage is available.

        Args:
            title: the stage's title.
            seconds: how long it took to compute.
            reused: whether it was cached.
        """

    def stage_failed(self, title: str, error: str) -> None:
        """A stage could not be computed.

        Args:
            title: the stage's title.
            error: the message.
        """

    def run_finished(self, result: Mapping[str, Any]) -> None:
        """A run is done.

        Args:
            result: the run's result, as plain data.
        """

    def run_failed(self, error: str) -> None:
        """A run ended without a result.

        Args:
            error: the message.
        """


@contextmanager
def observed_step(observers: Sequence[Observer], title: str) -> Iterator[Callable[[int, int], None]]:
    """Notify observers of one step of some work; yields the function that reports its progress."""
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
    """Runs stages while an executor is open; may be called from several threads at once."""

    @property
    def slots(self) -> int:
        """How many stages run at the same time; further calls of `execute` wait."""
        return 1

    def prepare(self) -> None:
        """Start what one more thread needs; called by each thread but the first, before it takes a stage."""
        return

    @abstractmethod
    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        """Compute one stage into a store, by a call of `defensekit.api.compute` in any process.

        Args:
            stage: the stage, as plain data; its inputs are in the store.
            store: the folder of the store.
            report: ``report(done, total)`` shows progress.

        Raises:
            DefenseKitError: the stage failed, or its worker died.
        """


class Executor(Component):
    """Decides where stages run."""

    kind: ClassVar[str] = "executor"

    def machine(self) -> dict[str, Any]:
        """Device type and number of threads of every stage; part of the stages' keys.

        Returns:
            ``device`` (``cpu`` or ``cuda``) and ``threads``.
        """
        import torch

        return {"device": "cuda" if torch.cuda.is_available() else "cpu", "threads": torch.get_num_threads()}

    def alone(self) -> dict[str, Any]:
        """What `machine` gives, of a stage that nothing of its run can be computed beside.

        Returns:
            The same, unless other stages leave cores free.
        """
        return self.machine()

    @abstractmethod
    def open(self) -> AbstractContextManager[Workers]:
        """Start the workers.

        Returns:
            A context manager for the workers, which ends them.
        """
