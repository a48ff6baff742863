"""What a run found: the schema of ``result.json``."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from defensekit.components.metric import Measured


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Histogram(_Schema):
    """The scores of the eligible dimensions, and of the selected ones, in bins of equal width between two bounds.

    Where ``log``, bounds and bins are of log10 of the scores, and ``zero`` dimensions with a score of 0 are in no bin.
    """

    log: bool
    low: float
    high: float
    zero: int
    counts: list[int]
    selected: list[int]


class Reset(_Schema):
    """How much of a model was selected: counts of dimensions, and what they are shares of.

    ``of_eligible`` is the fraction, ``of_all`` counts the head and what never moved as well. ``tensors`` has the
    dimensions in scope, eligible and selected of every tensor. The ``where_zero`` counts say, per statistic, how many
    of the eligible and of the selected dimensions have it exactly 0.
    """

    dimensions: int
    in_scope: int
    eligible: int
    selected: int
    eligible_where_zero: dict[str, int] = {}
    selected_where_zero: dict[str, int] = {}
    head: list[str] = []
    tensors: dict[str, tuple[int, int, int]] = {}
    scores: Histogram

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


class Example(_Schema):
    """A triggered test row, the row it came from where that is known, and what the models answer."""

    text: str
    pair: str | None
    plain: str | None
    plain_pair: str | None
    label: str
    answers: dict[str, str]


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
    examples: list[Example]
    attack: dict[str, Any] | None
    data: dict[str, Any]
    statistics: dict[str, Any] | None
    warnings: list[str]
    recipe: dict[str, Any]
    stages: list[dict[str, Any]]
    environment: dict[str, Any]
    seconds: float
    folder: str
