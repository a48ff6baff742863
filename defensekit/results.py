"""What a run found: the schema of ``result.json``."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from defensekit.components.metric import Measured


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reset(_Schema):
    """How much of a model was selected: counts of dimensions, and what they are shares of.

    ``of_eligible`` is the fraction, ``of_all`` counts the head and what never moved as well. The ``where_zero`` counts
    say, per statistic, how many of the eligible and of the selected dimensions have it exactly 0.
    """

    dimensions: int
    in_scope: int
    eligible: int
    selected: int
    eligible_where_zero: dict[str, int] = {}
    selected_where_zero: dict[str, int] = {}
    head: list[str] = []
    tensors: dict[str, tuple[int, int, int]] = {}

    @property
    def of_eligible(self) -> float:
        """Selected as a share of the eligible dimensions."""
        return self.selected / self.eligible if self.eligible else 0.0

    @property
    def of_all(self) -> float:
        """Selected as a share of all dimensions."""
        return self.selected / self.dimensions if self.dimensions else 0.0


class ModelResult(_Schema):
    """One of the models: its metrics, what was reset, and the seconds it took to make (statistics included)."""

    metrics: dict[str, Measured]
    seconds: float | None
    reset: Reset | None = None
    defense: dict[str, Any] | None = None
    statistics: dict[str, Any] | None = None


class TrialResult(_Schema):
    """One value that the rule tried: ``dev_accuracy`` on clean dev rows decided, the metrics are for the reader."""

    value: float
    dev_accuracy: float
    metrics: dict[str, Measured]


class Chosen(_Schema):
    """What the rule took, and why."""

    rule: str
    over: str
    value: float
    reason: str
    suspect_dev_accuracy: float


class Result(_Schema):
    """A finished run."""

    schema_version: int = 1
    name: str
    summary: dict[str, dict[str, float | None]]
    models: dict[str, ModelResult]
    asr_floor: float | None
    clean_budget: int
    chosen: Chosen | None
    curve: list[TrialResult]
    attack: dict[str, Any] | None
    data: dict[str, Any]
    statistics: dict[str, Any] | None
    warnings: list[str]
    recipe: dict[str, Any]
    stages: list[dict[str, Any]]
    environment: dict[str, Any]
    seconds: float
    folder: str
