"""Metrics: a number with its interval, from predictions."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel

from defensekit.components.base import Component

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Predictions:
    """``logits`` (rows, labels) in float32 and the rows' true ``labels`` (rows,); ``target`` is the attacker's."""

    logits: "np.ndarray"
    labels: "np.ndarray"
    target: int | None = None

    def answers(self) -> "np.ndarray":
        """The label answered per row, shape (rows,)."""
        answers: np.ndarray = self.logits.argmax(axis=1)
        return answers


class Measured(BaseModel):
    """A share of ``rows`` rows in [0, 1], with a 95 % interval."""

    value: float
    low: float
    high: float
    rows: int


class Metric(Component):
    """Measures predictions on plain or on triggered test rows."""

    kind: ClassVar[str] = "metric"
    on: ClassVar[Literal["plain", "triggered"]]

    @abstractmethod
    def measure(self, predictions: Predictions) -> Measured:
        """The number and its interval; the interval says how far the test rows, not the seeds, leave it open."""
