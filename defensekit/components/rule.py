"""Rules: which value of a parameter to take, judged by predictions on clean rows only."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from defensekit.components.base import Component


@dataclass(frozen=True)
class Trial:
    """A value that was tried, and the accuracy it left on the clean dev rows (a share in [0, 1] of ``rows`` rows)."""

    value: float
    accuracy: float
    rows: int


@dataclass(frozen=True)
class Choice:
    """The value taken, why in one sentence, and a warning if there is one."""

    value: float
    reason: str
    warning: str | None = None


class Rule(Component):
    """Proposes trials and takes one of them."""

    kind: ClassVar[str] = "rule"

    over: str = Field("selector.fraction", description="the parameter of the defense that is chosen, as a dotted path")
    values: tuple[float, ...] = Field(
        min_length=1, description="the values to try; 0 is always tried", examples=[(0.25, 0.5)]
    )

    @abstractmethod
    def propose(self, seen: Sequence[Trial]) -> float | None:
        """The next value to try, or None when enough was seen."""

    @abstractmethod
    def choose(self, seen: Sequence[Trial], suspect: Trial) -> Choice:
        """The value to take; ``suspect`` is the untouched model on the same rows.

        Its ``value`` is where the defense does nothing: 0, or infinity, where a lower value does more.
        """
