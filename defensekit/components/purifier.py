"""Purifiers: what is done to the suspect. A chain of weight steps, which stream, and model steps, which train."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from defensekit.components.base import Component

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from defensekit.scoring import TensorView
    from defensekit.text import Row


class Purifier(Component):
    """One step of the chain; subclass `WeightStep` or `ModelStep`."""

    kind: ClassVar[str] = "purifier"


class WeightStep(Purifier):
    """Changes the selected weights, one tensor at a time.

    Where a weight's new value depends on that dimension alone, say ``elementwise = True``: then tensors are shown in
    parts, flattened, as to a `Scorer`.
    """

    elementwise: ClassVar[bool] = False

    @abstractmethod
    def apply(self, t: "TensorView", weight: "Tensor", selection: "Tensor") -> "Tensor":
        """The new weight, of the shape and dtype of ``weight`` (the suspect's, or what the step before made of it).

        ``selection`` is bool or soft in [0, 1]; where it is 0 the weight must stay equal to the bit.
        """


@dataclass(frozen=True)
class ModelStepContext:
    """What a model step may use: the defender's clean rows, and nothing of the attack."""

    tokenizer: "PreTrainedTokenizerBase"
    rows: "Sequence[Row]"
    max_length: int
    precision: Literal["float32", "bfloat16"]
    seed: int
    report: Callable[[int, int], None]


class ModelStep(Purifier):
    """Trains the model in place."""

    @abstractmethod
    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        """Train ``model``; names and shapes of its tensors stay."""
