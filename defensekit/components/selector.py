"""Selectors: which dimensions are taken, by their scores."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from defensekit.components.base import Component

if TYPE_CHECKING:
    from torch import Tensor

    from defensekit.components.tensors import Cut, Scores


class Selector(Component):
    """Takes dimensions by score."""

    kind: ClassVar[str] = "selector"

    @abstractmethod
    def select(self, scores: "Scores") -> "Mapping[str, Tensor | Cut]":
        """A selection for every tensor in ``scores``: bool, or soft in float32 with values in [0, 1], or a `Cut`.

        A dimension that is not eligible (``scores[name].eligible``) is never selected. Scores are computed whenever
        they are looked at: what needs them again and again should look at one tensor after the other. A `Cut` takes no
        memory, and ``scores.cutoff`` finds the exact one without holding the scores of a model.
        """

    def takes_nothing(self) -> bool:
        """True when these parameters select nothing whatever the scores are; the score is then not computed."""
        return False
