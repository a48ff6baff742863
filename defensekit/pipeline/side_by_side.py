"""The stages of one run made by several threads: while one is computed, others that the run will ask for."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from defensekit.components import Observer, Workers
from defensekit.pipeline.graph import Stage, closure
from defensekit.pipeline.runner import Runner
from defensekit.pipeline.schedule import Schedule
from defensekit.pipeline.store import Artifact, Store
from defensekit.utils.errors import DefenseKitError


class _Ahead(Runner):
    """Makes a stage ahead of the run, which records it when it asks for it."""

    def _record(self, stage: Stage, artifact: Artifact | None) -> bool:
        return False


class SideBySide(Runner):
    """Makes what is asked for, and beside it what will be: what is found, and which error is met, is the same.

    A stage that fails ends what is made ahead. The run goes on until it asks for that stage, or for another that fails.
    """

    def __init__(self, store: Store, workers: Workers, observers: Sequence[Observer]) -> None:
        super().__init__(store, workers, observers, observer_lock=threading.RLock())
        self._schedule = Schedule(self._make_ahead)
        self._stages: dict[str, Stage] = {}
        self._look: Callable[[], Iterable[Stage]] | None = None

    @contextmanager
    def ahead(self, look: Callable[[], Iterable[Stage]]) -> Iterator[None]:
        """Within the block, make stages ahead.

        Args:
            look: gives the stages that the run is certain to ask for, as far as they follow from what is stored.
        """
        self._look = look
        self._schedule.start(self.workers.slots - 1, self.workers.prepare, self._failing)
        try:
            yield
        finally:
            self._look = None
            self._schedule.stop(DefenseKitError("the run ended"))

    def make(self, stage: Stage) -> Artifact:
        """The artifact of a stage; until it is there, this thread makes whatever is most urgent."""
        if self._look and not self.store.has(stage.key):
            self._add()
            self._schedule.work(lambda: stage.key not in self._schedule.waiting or self._failing())
            if self._schedule.stopped:
                raise self._schedule.stopped
        return super().make(stage)

    def _failing(self) -> bool:
        return bool(self.failed)

    def _make_ahead(self, key: str) -> None:
        runner = _Ahead(self.store, self.workers, self.observers, self.failed, self.observer_lock, self.computed)
        try:
            runner.make(self._stages[key])
        except DefenseKitError:
            if not self.failed:  # an observer's
                raise
        self._add()

    def _add(self) -> None:
        """Put what the run is now known to ask for on the schedule."""
        with self._schedule.state:
            if not self._look or self.failed:
                return
            stages = list(self._look())
            cached = {key for key in closure(stages) if self.store.has(key)}
            for key, stage in closure(stages, cached).items():
                if key not in self._stages:
                    self._stages[key] = stage
                    self._schedule.add(key, len(self._stages), (needed.key for needed in stage.inputs))
