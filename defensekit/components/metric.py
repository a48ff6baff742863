"""Metrics: a number with its interval, from predictions."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel

from defensekit.components.base import Component

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Predictions:
    """``logits`` (rows, labels) in float32 and the rows' true ``labels`` (rows,).

    ``target`` is the attacker's, None for a bias or where nothing is known of an attack; ``names`` are those of the
    labels, and ``seed`` is for intervals that need draws. ``ids`` (rows,) say which row is which: a row keeps its id
    when it gets a trigger.

    For a metric on ``both``, ``plain`` are the same model's answers to rows without the trigger: to the very same rows,
    in the same order, if ``paired``.
    """

    logits: "np.ndarray"
    labels: "np.ndarray"
    target: int | None = None
    names: tuple[str, ...] = ()
    seed: int = 0
    ids: "np.ndarray | None" = None
    plain: "Predictions | None" = None

    @property
    def paired(self) -> bool:
        """Whether every row has an answer without the trigger beside it, in ``plain``."""
        if self.plain is None or self.ids is None or self.plain.ids is None:
            return False
        return bool(self.ids.tolist() == self.plain.ids.tolist())

    def beside(self, plain: "Predictions") -> "Predictions":
        """These answers to triggered rows with the same model's to plain rows: of the same rows where all have one."""
        import numpy as np

        if self.ids is not None and plain.ids is not None:
            position = {row: i for i, row in enumerate(plain.ids.tolist())}
            if all(row in position for row in self.ids.tolist()):
                chosen = np.array([position[row] for row in self.ids.tolist()], dtype=np.int64)
                plain = replace(plain, **{key: getattr(plain, key)[chosen] for key in ("logits", "labels", "ids")})
        return replace(self, plain=plain)

    def answers(self) -> "np.ndarray":
        """The label answered per row, shape (rows,)."""
        answers: np.ndarray = self.logits.argmax(axis=1)
        return answers

    def name(self, label: int) -> str:
        """What a label is called; its number where nobody named it."""
        return self.names[label] if self.names else str(label)


class Measured(BaseModel):
    """A number from ``rows`` rows, with a 95 % interval; ``parts`` are the same of some of the rows."""

    value: float
    low: float
    high: float
    rows: int
    parts: "dict[str, Measured]" = {}


class Metric(Component):
    """Measures predictions on plain test rows, on triggered ones, or on both.

    ``about`` names the attacks that it says something of: a ``backdoor`` aims at a label, a ``bias`` at none.
    ``better`` says which way is better, ``meaning`` what it is, in a phrase; both are recorded in the result.
    """

    kind: ClassVar[str] = "metric"
    on: ClassVar[Literal["plain", "triggered", "both"]]
    # The least and the greatest value; a run refuses any other.
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
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

    def row_values(self, predictions: Predictions) -> "np.ndarray | None":
        """The values of the rows that count, (rows,), if the number is their mean: of a share, whether each is a hit.

        Two models are compared row by row by it. None if the number is no mean over rows.
        """
        return None
