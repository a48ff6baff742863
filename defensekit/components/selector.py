"""Selectors: which dimensions are selected, by their scores."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from defensekit.components.base import Component

if TYPE_CHECKING:
    from torch import Tensor

    from defensekit.components.tensors import Cut, Scores


class Selector(Component):
    """Selects dimensions by their scores."""

    kind: ClassVar[str] = "selector"

    @abstractmethod
    def select(self, scores: "Scores") -> "Mapping[str, Tensor | Cut]":
        """Select dimensions.

        Scores are computed at every access, so a selector that needs them several times should finish with one tensor
        before the next. ``scores.cutoff`` finds an exact threshold without holding all scores in memory.

        Args:
            scores: the scores of every tensor in scope.

        Returns:
            A selection for every tensor, by name: bool, or soft in float32 with values in [0, 1], or a `Cut`, which
            takes no memory. Dimensions that are not eligible (``scores[name].eligible``) must not be selected.
        """

    def takes_nothing(self) -> bool:
        """Whether these parameters select nothing for any scores, so that scores need not be computed.

        Returns:
            True if the selection is always empty.
        """
        return False
