"""Selectors: which dimensions are taken, by their scores."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from defensekit.components.base import Component

if TYPE_CHECKING:
    from torch import Tensor

    from defensekit.scoring import Scores


class Selector(Component):
    """Takes dimensions by score."""

    kind: ClassVar[str] = "selector"

    @abstractmethod
    def select(self, scores: "Scores") -> "dict[str, Tensor]":
        """A selection for every tensor in ``scores``: bool, or soft in float32 with values in [0, 1].

        A dimension that is not eligible (``scores[name].eligible``) is never selected.
        """

    def takes_nothing(self) -> bool:
        """True when these parameters select nothing whatever the scores are; the score is then not computed."""
        return False
