"""The graph of a run's stages: what one is as plain data, and what it needs."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from defensekit.pipeline.store import key_of


@dataclass(frozen=True, eq=False)
class Stage:
    """A planned stage: plain data, and the stages that its inputs come from."""

    plain: dict[str, Any]
    inputs: tuple["Stage", ...]

    @cached_property
    def key(self) -> str:
        """The key of its artifact in the store."""
        return key_of(self.plain)


@dataclass(frozen=True)
class ExternalModel:
    """A model outside the store: its path, and the digest of its contents."""

    path: Path
    digest: str


Model = Stage | ExternalModel


def closure(stages: Iterable[Stage], cached: set[str] | frozenset[str] = frozenset()) -> dict[str, Stage]:
    """Stages and their inputs, by key, inputs first; without cached stages and the inputs of these alone."""
    stages_by_key: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in stages_by_key or stage.key in cached:
            return
        for needed in stage.inputs:
            visit(needed)
        stages_by_key[stage.key] = stage

    for stage in stages:
        visit(stage)
    return stages_by_key
