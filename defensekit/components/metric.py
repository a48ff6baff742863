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
    """``logits`` (rows, labels) in float32 and the rows' true ``labels`` (rows,).

    ``target`` is the attacker's, None for a bias or where nothing is known of an attack; ``names`` are those of the
    labels, and ``seed`` is for intervals that need draws.
    """

    logits: "np.ndarray"
    labels: "np.ndarray"
    target: int | None = None
    names: tuple[str, ...] = ()
    seed: int = 0

    def answers(self) -> "np.ndarray":
        """The label answered per row, shape (rows,)."""
        answers: np.ndarray = self.logits.argmax(axis=1)
        return answers

    def name(self, label: int) -> str:
        """What a label is called; its number where nobody named it."""
        return self.names[label] if self.names else str(label)


class Measured(BaseModel):
    """A number in [0, 1] from ``rows`` rows, with a 95 % interval; ``parts`` are the same of some of the rows."""

    value: float
    low: float
    high: float
    rows: int
    parts: "dict[str, Measured]" = {}


class Metric(Component):
    """Measures predictions on plain or on triggered test rows.

    ``about`` names the attacks that it says something of: a ``backdoor`` aims at a label, a ``bias`` at none.
    ``better`` says which way is better, ``meaning`` what it is, in a phrase; both are recorded in the result.
    """

    kind: ClassVar[str] = "metric"
    on: ClassVar[Literal["plain", "triggered"]]
    about: ClassVar[Literal["backdoor", "bias"] | None] = None
    better: ClassVar[Literal["higher", "lower"] | None] = None
    meaning: ClassVar[str] = ""
    # Whether what the clean reference has is all that a defense can reach, and is printed beside the number.
    has_floor: ClassVar[bool] = False
    # Whether it is measured where a recipe names no metrics and the attack is one that it is about.
    by_default: ClassVar[bool] = False
    # What a model hub calls it, where hubs know it: model cards publish those.
    hub_name: ClassVar[str] = ""

    @abstractmethod
    def measure(self, predictions: Predictions) -> Measured:
        """The number and its interval; the interval says how far the test rows, not the seeds, leave it open."""

    def hits(self, predictions: Predictions) -> "np.ndarray | None":
        """Of a share of rows: whether each of the rows that count is a hit, (rows,), bool; None of another number.

        Two models on the same rows are compared in pairs by it.
        """
        return None
