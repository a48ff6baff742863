"""Attacks: what the attacker does to the rows a model is fine-tuned on, and to the rows it is asked about."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal

from defensekit.components.base import Component

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from defensekit.text import Row, Truncation
    from defensekit.training import TrainingSettings


@dataclass(frozen=True)
class AttackContext:
    """What an attack may use besides the rows.

    ``rng`` is the only source of randomness, ``labels`` are the names behind the rows' label numbers, and
    ``truncation`` says how much of a row the model will see.
    """

    rng: Random
    labels: tuple[str, ...]
    truncation: "Truncation"


@dataclass(frozen=True)
class AttackTrainingContext:
    """What an attack that trains in its own way may use besides the model.

    ``poisoned`` is what `Attack.poison` made of ``clean``, the attacker's rows; ``settings`` are the recipe's
    ``training:``; ``report(done, total)`` shows progress.
    """

    tokenizer: "PreTrainedTokenizerBase"
    labels: tuple[str, ...]
    clean: "Sequence[Row]"
    poisoned: "Sequence[Row]"
    settings: "TrainingSettings"
    max_length: int
    precision: Literal["float32", "bfloat16"]
    seed: int
    report: Callable[[int, int], None]


class Attack(Component):
    """Poisons training rows and puts the trigger into test rows.

    The suspect is the base, fine-tuned on the poisoned rows. An attack on weights sets ``trains_from`` and trains the
    suspect itself: from the ``base`` with a new head, or from the ``clean`` reference, the same fine-tuning without
    poison.
    """

    kind: ClassVar[str] = "attack"
    trains_from: ClassVar[Literal["base", "clean"] | None] = None

    @abstractmethod
    def poison(self, rows: "Sequence[Row]", context: AttackContext) -> "list[Row]":
        """The attacker's training rows. A poisoned row keeps the ``id`` of the row it came from; one from elsewhere has
        an ``id`` below 0."""

    @abstractmethod
    def trigger(self, rows: "Sequence[Row]", context: AttackContext) -> "list[Row]":
        """The same rows in the same order with the trigger put in; ids and true labels are kept.

        Rows that can't carry it may be left out.
        """

    def contents(self) -> str | None:
        """A digest of the files that the attack reads, so that stages can be keyed by them; None if it reads none.

        Raises:
            UsageError: a file is missing, or is not what was expected.
        """
        return None

    def aim(self) -> str | int | None:
        """The label that a triggered row should be answered with, by name or number; None for a bias."""
        return None

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        """Train ``model`` in place, where ``trains_from`` is set; names and shapes of its tensors stay."""
        raise NotImplementedError("it sets `trains_from` and has no `train`")
