"""Where stages run, as the core has it: here."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from defensekit.components import Executor, Workers


def compute(stage: dict[str, Any], store: Path, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Compute a stage whose inputs are in the store, into the store: what every executor does in the end.

    Raises:
        DefenseKitError: what went wrong, with the name of the plugin where a plugin did it.
    """
    from defensekit.pipeline import stages

    stages.compute(stage, store, report)


class _Here(Workers):
    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        compute(stage, store, report)


class InProcess(Executor):
    """Runs each stage in this process, one after the other."""

    def open(self) -> AbstractContextManager[Workers]:
        return nullcontext(_Here())
