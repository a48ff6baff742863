"""What a run found: the schema of ``result.json``."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from defensekit.components.metric import Measured
from defensekit.errors import UsageError, listing, nearest
from defensekit.notebook import html_table
from defensekit.text import ROWS, Row, read_rows


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

    def files(self, title: str) -> Path:
        """The folder of a stage's files in the workspace's store, by its title: "suspect", "triggered rows", ...

        Raises:
            UsageError: the run had no such stage, or it was pruned.
        """
        titles: dict[str, str] = {stage["title"]: stage["key"] for stage in self.stages}
        if title not in titles:
            raise UsageError(f"there is no stage {title!r}.{nearest(title, titles)} (stages: {listing(titles, 60)})")
        place = Path(self.folder).parents[1] / "store" / "artifacts" / titles[title] / "files"
        if not place.is_dir():
            raise UsageError(f"the stage {title!r} is not in the store any more; run the recipe again")
        return place

    def rows(self, title: str) -> list[Row]:
        """The rows of a stage, by its title: "test rows", "triggered rows", "poisoned rows", ..."""
        return read_rows(self.files(title) / ROWS)

    def __repr__(self) -> str:
        models = {name: {k: round(m.value, 3) for k, m in model.metrics.items()} for name, model in self.models.items()}
        return f"Result({self.name!r}, {models}, folder={self.folder!r})"

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for model in self.models.values() for name in model.metrics))
        rows = [
            [
                title,
                *(f"{model.metrics[n].value:.3f}" if n in model.metrics else "–" for n in names),
                f"{model.reset.of_eligible:.1%}" if model.reset else "–",
            ]
            for title, model in self.models.items()
        ]
        header = ["model", *(name.upper() for name in names), "reset, of eligible"]
        return html_table(self.name, header, rows, f"everything is in {self.folder}")
