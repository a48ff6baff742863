"""Purifiers: chains of weight steps, which are applied tensor by tensor, and model steps, which train."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from defensekit.components.base import Component
from defensekit.text import TaskKind

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from defensekit.components.tensors import TensorView
    from defensekit.text import Row
    from defensekit.training import TrainingSettings


class Purifier(Component):
    """One step of the chain; subclass `WeightStep` or `ModelStep`."""

    kind: ClassVar[str] = "purifier"

    def contents(self) -> str | None:
        """A digest of the files that the step reads; it is part of the stages' keys.

        Returns:
            The digest, or None if it reads no files.

        Raises:
            UsageError: a file is missing or invalid.
        """
        return None


class WeightStep(Purifier):
    """Changes weights, one tensor at a time.

    Attributes:
        acts_on: ``selected`` for a step that changes the selected dimensions; ``kept`` for one that changes those that
            drifted and were not selected. The step gets these as its selection.
        elementwise: True where a dimension's new value depends on that dimension alone. Tensors are then passed
            flattened and in parts, as to a `Scorer`.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset(get_args(TaskKind))  # it is shown no row

    acts_on: ClassVar[Literal["selected", "kept"]] = "selected"
    elementwise: ClassVar[bool] = False

    @abstractmethod
    def apply(self, t: "TensorView", weight: "Tensor", selection: "Tensor") -> "Tensor":
        """Compute the new weights.

        Args:
            t: the tensor's name, base, drift and statistics.
            weight: the suspect's weights, or the result of the previous step.
            selection: of the same shape, bool, or soft in [0, 1].

        Returns:
            The new weights, in the shape and dtype of ``weight``. Where ``selection`` is 0 they must be bitwise equal
            to ``weight``.
        """


@dataclass(frozen=True)
class FoundTrigger:
    """What turns a suspect's answers, and hardly those of a model trained from the base on clean rows.

    Attributes:
        text: the word.
        label: the number of the label that answers turn to.
        flipped: the share of the suspect's answers that it turns, in [0, 1], on rows that the search did not see.
        control: the same of the other model, beyond the rows that it answers so without the word.
        rows: how many rows these are.
        after: the share that it turns of the purified model's answers, on the same rows; None until that is made.
    """

    text: str
    label: int
    flipped: float
    control: float
    rows: int
    after: float | None = None


@dataclass(frozen=True)
class ModelStepContext:
    """What a model step may use: the defender's clean rows and models, but no data of the attack.

    Attributes:
        tokenizer: the suspect's tokenizer.
        rows: the defender's clean rows.
        max_length: tokens at which rows are cut.
        precision: ``float32``, or ``bfloat16`` for autocast.
        seed: the seed of all random numbers.
        report: ``report(done, total)`` shows progress.
        model: ``model("suspect")`` loads the suspect as it was given, ``model("base")`` the base's weights with the
            suspect's head, ``model(folder)`` another classifier of the same architecture and labels. A step that reads
            a folder must return its digest by ``contents``.
        head: the names of the parameters that the base's file lacks.
        triggers: words that turn the suspect's answers, and not those of a model trained from the base on the clean
            rows, the strongest first; none, unless a step asks for a search, by ``searching``.
    """

    tokenizer: "PreTrainedTokenizerBase"
    rows: "Sequence[Row]"
    max_length: int
    precision: Literal["float32", "bfloat16"]
    seed: int
    report: Callable[[int, int], None]
    model: "Callable[[Literal['suspect', 'base'] | Path], PreTrainedModel]"
    head: frozenset[str]
    triggers: "Sequence[FoundTrigger]" = ()


class ModelStep(Purifier):
    """Trains the model in place."""

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})

    def searching(self) -> "TrainingSettings | None":
        """How to train the model that the suspect is compared with, in a search for what triggers the suspect.

        The search is of the suspect, whatever steps come before, and its result is shared by all that ask for the same.

        Returns:
            The settings; None for a step that needs no search.
        """
        return None

    @abstractmethod
    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        """Train the model in place.

        Args:
            model: the suspect after the previous steps; the names and shapes of its tensors must not change.
            context: rows, precision and seed.
        """
