"""The executor of the core: stages run in this process."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from defensekit.components import Executor, Workers


def compute(stage: dict[str, Any], store: Path, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Compute a stage whose inputs are in the store, into the store: every executor ends in this call.

    Args:
        stage: the stage as plain data.
        store: the folder of the store.
        report: called with steps done and in all.

    Raises:
        DefenseKitError: the stage failed; names the plugin if one caused it.
    """
    from defensekit.pipeline import stages

    stages.compute(stage, store, report)


class _Here(Workers):
    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        compute(stage, store, report)


class InProcess(Executor):
    """Runs each stage in this process, one after the other."""

    def open(self) -> AbstractContextManager[Workers]:
        """Workers for the length of a run."""
        return nullcontext(_Here())
