"""Where stages run, as the core has it: here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from defensekit.components import Executor


class InProcess(Executor):
    """Runs each stage in this process, one after the other."""

    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        from defensekit.stages import compute

        compute(stage, store, report)
