"""Computes stages, or takes them from the store."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from defensekit.components import Observer, Workers, call_component
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.store import Artifact, Damaged, Store, versions
from defensekit.result.schema import StageRecord
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.logging import log


@dataclass
class Runner:
    """Makes stages: reuses what the store has, computes what it has not.

    ``failed`` has the errors of stages, by key: other runs with the same stage don't try again. ``computed`` has the
    keys of the stages that were not cached. ``observer_lock`` is held while observers are notified. ``made_otherwise``
    counts the recorded stages that were made with another version of something than is installed here.
    """

    store: Store
    workers: Workers
    observers: Sequence[Observer]
    failed: dict[str, DefenseKitError] = field(default_factory=dict)
    observer_lock: AbstractContextManager[Any] = field(default_factory=nullcontext)
    computed: set[str] = field(default_factory=set)
    records: dict[str, StageRecord] = field(default_factory=dict)
    made_otherwise: Counter[str] = field(default_factory=Counter)

    def notify(self, event: str, *values: Any) -> None:
        """Notify every observer."""
        with self.observer_lock:
            for observer in self.observers:
                call_component(observer, getattr(observer, event), *values)

    def make(self, stage: Stage) -> Artifact:
        """The artifact of a stage, computed after its inputs unless it is cached.

        Raises:
            DefenseKitError: the stage failed, now or in an earlier run.
        """
        artifact = self._stored(stage)
        while artifact is None:
            if stage.key in self.failed:
                raise self.failed[stage.key].with_traceback(None)  # else it grows each time it is raised
            for needed in stage.inputs:
                self.make(needed)
            with self.store.lock(stage.key, lambda: self._wait(stage)):
                # Another process may have computed it meanwhile, or removed a model that it needs.
                artifact = self._stored(stage, locked=True)
                if artifact is None and all(self.store.has(needed.key) for needed in stage.inputs):
                    artifact = self._compute(stage)
        if self._record(stage, artifact) and stage.key not in self.computed:
            self.notify("stage_finished", stage.plain["title"], artifact.seconds, True)
        return artifact

    def _wait(self, stage: Stage) -> None:
        self.notify("message", f"{stage.plain['title']}: another process is computing it")

    def _compute(self, stage: Stage) -> Artifact | None:
        """The artifact; None if an input was removed meanwhile and has to be computed again."""
        title = stage.plain["title"]
        self.notify("stage_started", title)
        log.info("%s: computing %s", title, stage.key)
        try:
            self.workers.execute(
                stage.plain, self.store.root, lambda done, total: self.notify("progress", title, done, total)
            )
        except DefenseKitError as error:
            if not all(self.store.has(needed.key) for needed in stage.inputs):
                return None
            self.failed[stage.key] = error
            self.notify("stage_failed", title, str(error))
            raise
        artifact = self.store.open(stage.key)
        self.computed.add(stage.key)
        self.notify("stage_finished", title, artifact.seconds, False)
        return artifact

    def _record(self, stage: Stage, artifact: Artifact | None) -> bool:
        """Record a stage after its inputs; False if it is recorded already."""
        if stage.key in self.records:
            return False
        for needed in stage.inputs:
            self._record(needed, self.store.peek(needed.key) or self.store.removed(needed.key))
        self.records[stage.key] = StageRecord(
            title=stage.plain["title"],
            kind=stage.plain["kind"],
            key=stage.key,
            reused=stage.key not in self.computed,
            seconds=artifact.seconds if artifact else None,
            peak_memory=artifact.peak_memory if artifact else None,
            digest=artifact.digest if artifact else None,
        )
        here = versions()
        for name, has in artifact.made_with.items() if artifact else ():
            if has != here.get(name):
                self.made_otherwise[f"{name} {has} (here: {here.get(name, 'none')})"] += 1
        return True

    def _stored(self, stage: Stage, locked: bool = False) -> Artifact | None:
        """The artifact, if it is complete; a damaged one is removed under its lock, since it may have been replaced."""
        if not self.store.has(stage.key):
            return None
        try:
            return self.store.open(stage.key)
        except Damaged as error:
            if locked:
                self.notify("message", f"{error}; it is computed again")
                self.store.remove(stage.key)
            return None
