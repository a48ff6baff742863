"""Executors, which say where a stage runs, and observers, who watch."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
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
    def there(self) -> bool:
        """Whether it was made before."""
        return self.seconds is not None


class Observer(Component):
    """Watches a run; every method may be overridden, none has to be."""

    kind: ClassVar[str] = "observer"

    def message(self, text: str) -> None:
        """A line for the user."""

    def warning(self, text: str) -> None:
        """A line that the result keeps as well; by default it is told as a message."""
        self.message(f"warning: {text}")

    def planned(self, stages: Sequence[Planned]) -> None:
        """What the run needs, as far as it can be known before it starts; those that are there already as well."""

    def stage_started(self, title: str) -> None:
        """A stage that has to be computed begins."""

    def progress(self, title: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of the stage are done."""

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        """A stage is there; ``reused`` when it was before the run."""


class Executor(Component):
    """Says where stages run."""

    kind: ClassVar[str] = "executor"

    @abstractmethod
    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        """Compute one stage, given as plain data, into the store in that folder; its inputs are there already.

        `defensekit.stages.compute` does the work, wherever it is called.
        """
