"""Filters: defenses of training data, which score the attacker's rows and take the most suspicious ones away."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from defensekit.components.base import Component
from defensekit.text import TaskKind

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from defensekit.text import Row
    from defensekit.training import TrainingSettings


@dataclass(frozen=True)
class RowFeatures:
    """What a classifier makes of rows.

    Attributes:
        logits: its answers: (rows, labels), float32.
        pooled: what its head, the last linear layer, reads of every row: (rows, width), float32.
        hidden: the last layer's state of the token that the classifier reads, before it is pooled: the first one, or
            the last one in models that read from left to right. (rows, width), float32.
    """

    logits: "np.ndarray"
    pooled: "np.ndarray"
    hidden: "np.ndarray"

    def losses(self, labels: Sequence[int]) -> "np.ndarray":
        """The cross-entropy of every row.

        Args:
            labels: the label's number of every row.

        Returns:
            (rows,), float64.
        """
        import numpy as np
        from scipy.special import log_softmax

        losses: np.ndarray = -log_softmax(self.logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
        return losses


@dataclass(frozen=True)
class FilterContext:
    """What a filter may use: the attacker's training rows, and never which of them are poisoned.

    Attributes:
        rows: the attacker's training rows, numbered by their place.
        features: what the suspect makes of them.
        clean: the defender's clean rows.
        labels: the names of the rows' label numbers.
        model: ``model("suspect")`` loads the suspect, ``model("base")`` the base with a new head, to be trained.
        tokenizer: their tokenizer.
        read: ``read(model, rows)`` gives the features of other rows, or by another model.
        settings: the recipe's ``training:``, by which the suspect was trained and the next model will be.
        max_length: tokens at which rows are cut.
        precision: ``float32``, or ``bfloat16`` for autocast.
        seed: the seed of all random numbers.
        report: ``report(done, total)`` shows progress.
    """

    rows: "Sequence[Row]"
    features: RowFeatures
    clean: "Sequence[Row]"
    labels: tuple[str, ...]
    model: "Callable[[Literal['suspect', 'base']], PreTrainedModel]"
    tokenizer: "PreTrainedTokenizerBase"
    read: "Callable[[PreTrainedModel, Sequence[Row]], RowFeatures]"
    settings: "TrainingSettings"
    max_length: int
    precision: Literal["float32", "bfloat16"]
    seed: int
    report: Callable[[int, int], None]


class Filter(Component):
    """Scores the attacker's training rows; the most suspicious are taken away before a model is trained anew.

    Scores are computed once for all values of the three parameters that every filter has. A filter for whose scores 0
    is no natural threshold gives ``fraction`` or ``threshold`` a default of its own.
    """

    kind: ClassVar[str] = "filter"
    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    lower_does_more: ClassVar[frozenset[str]] = frozenset({"threshold"})

    fraction: float | None = Field(
        None, ge=0, le=1, description="the share of the rows that is taken, in place of the threshold; counted exactly"
    )
    scope: Literal["global", "label"] = Field(
        "global", description="whether the fraction is one of all rows, or of the rows of every label"
    )
    threshold: float = Field(0.0, description="without a fraction, rows with a score above this are taken")

    @abstractmethod
    def score(self, context: FilterContext) -> "np.ndarray":
        """Score every row.

        Args:
            context: the rows, what the suspect makes of them, models and settings.

        Returns:
            (rows,), finite; higher for rows that are more likely poisoned.
        """
