"""Purifiers: what is done to the suspect. A chain of weight steps, which stream, and model steps, which train."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from defensekit.components.base import Component

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from defensekit.components.tensors import TensorView
    from defensekit.text import Row


class Purifier(Component):
    """One step of the chain; subclass `WeightStep` or `ModelStep`."""

    kind: ClassVar[str] = "purifier"

    def contents(self) -> str | None:
        """A digest of the files that the step reads, so that stages can be keyed by them; None if it reads none.

        Raises:
            UsageError: a file is missing, or is not what was expected.
        """
        return None


class WeightStep(Purifier):
    """Changes the selected weights, one tensor at a time; or, where ``acts_on`` is ``kept``, those that moved and were
    not selected. Whatever it acts on is what it is handed as selection.

    Where a weight's new value depends on that dimension alone, say ``elementwise = True``: then tensors are shown in
    parts, flattened, as to a `Scorer`.
    """

    acts_on: ClassVar[Literal["selected", "kept"]] = "selected"
    elementwise: ClassVar[bool] = False

    @abstractmethod
    def apply(self, t: "TensorView", weight: "Tensor", selection: "Tensor") -> "Tensor":
        """The new weight, of the shape and dtype of ``weight`` (the suspect's, or what the step before made of it).

        ``selection`` is bool or soft in [0, 1]; where it is 0 the weight must stay equal to the bit.
        """


@dataclass(frozen=True)
class ModelStepContext:
    """What a model step may use: the defender's clean rows and models, and nothing of the attack.

    ``model("base")`` loads the base's weights under the suspect's head, ``model(folder)`` another classifier of the
    same architecture and labels; a step that reads a folder says so by its ``contents``. ``head`` names the parameters
    that the base's file lacks.
    """

    tokenizer: "PreTrainedTokenizerBase"
    rows: "Sequence[Row]"
    max_length: int
    precision: Literal["float32", "bfloat16"]
    seed: int
    report: Callable[[int, int], None]
    model: "Callable[[Literal['base'] | Path], PreTrainedModel]"
    head: frozenset[str]


class ModelStep(Purifier):
    """Trains the model in place."""

    @abstractmethod
    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        """Train ``model``; names and shapes of its tensors stay."""
