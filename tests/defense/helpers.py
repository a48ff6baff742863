"""What a sanitizer is handed beside texts."""

from pathlib import Path

from defensekit.api import SanitizerContext
from defensekit.defense import sanitizing


def context(folder: Path | None, max_length: int = 64) -> SanitizerContext:
    return sanitizing.context(folder, max_length=max_length, seed=0, report=lambda done, total: None)
