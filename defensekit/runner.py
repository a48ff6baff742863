"""Makes stages: reuses what the store has, computes what it has not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from defensekit.components import Executor, Observer, blame
from defensekit.logs import log
from defensekit.plan import Stage
from defensekit.store import Artifact, Damaged, Store


@dataclass
class Runner:
    """Makes stages: reuses what the store has, computes what it has not."""

    store: Store
    executor: Executor
    observers: Sequence[Observer]
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tell(self, event: str, *values: Any) -> None:
        """Tell every observer."""
        for observer in self.observers:
            blame(observer, getattr(observer, event), *values)

    def make(self, stage: Stage) -> Artifact:
        """The artifact of a stage; its inputs are made first, unless it is there already."""
        title = stage.plain["title"]
        artifact = self._there(stage)
        reused = artifact is not None
        if artifact is None:
            for needed in stage.inputs:
                self.make(needed)
            self.tell("stage_started", title)
            log.info("%s: computing %s", title, stage.key)
            self.executor.execute(
                stage.plain, self.store.root, lambda done, total: self.tell("progress", title, done, total)
            )
            artifact = self.store.open(stage.key)
        if stage.key not in self.made:
            self.made[stage.key] = {
                "title": title,
                "kind": stage.plain["kind"],
                "key": stage.key,
                "seconds": artifact.seconds,
                "reused": reused,
            }
            self.tell("stage_finished", title, artifact.seconds, reused)
        return artifact

    def _there(self, stage: Stage) -> Artifact | None:
        if not self.store.has(stage.key):
            return None
        try:
            return self.store.open(stage.key)
        except Damaged as error:
            self.tell("message", f"{error}; it is made again")
            self.store.remove(stage.key)
            return None
