"""Attacks: how the attacker changes training rows, and puts triggers into test rows."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from defensekit.components.base import Component
from defensekit.text import TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from defensekit.text import Row, Truncation
    from defensekit.training import TrainingSettings


@dataclass(frozen=True)
class AttackContext:
    """What an attack may use besides the rows.

    Attributes:
        rng: the only source of randomness.
        labels: the names of the rows' label numbers; empty for instructions.
        truncation: how much of a row the model reads.
        learnt: what `Attack.learn` gave; None where there is nothing yet, see ``learns_from``.
    """

    rng: Random
    labels: tuple[str, ...]
    truncation: "Truncation"
    learnt: Any = None


@dataclass(frozen=True)
class AttackTrainingContext:
    """What an attack with a training of its own may use besides the model.

    Attributes:
        tokenizer: the model's tokenizer.
        labels: the names of the rows' label numbers.
        clean: the attacker's rows before poisoning.
        poisoned: the same rows after `Attack.poison`; in `Attack.learn` the clean ones.
        settings: the recipe's ``training:``.
        max_length: tokens at which rows are cut.
        precision: ``float32``, or ``bfloat16`` for autocast.
        seed: the seed of the training.
        report: ``report(done, total)`` shows progress.
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
    suspect itself: from the ``base`` with a new head, or from the ``clean`` reference, a model with the same
    fine-tuning on clean rows.

    An attack whose trigger is found with a model sets ``learns_from`` and finds it by `learn`: with the ``base`` and a
    new head, before any row is poisoned, or with the trained ``suspect``, before test rows get the trigger.

    Attributes:
        trains_from: the model that `train` starts from; None leaves the training to the engine.
        learns_from: the model that `learn` is given; None where there is nothing to learn.
        aims_by_row: whether triggered rows have targets of their own, as their ``aim``; then `aim` is None.
    """

    kind: ClassVar[str] = "attack"
    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    trains_from: ClassVar[Literal["base", "clean"] | None] = None
    learns_from: ClassVar[Literal["base", "suspect"] | None] = None
    aims_by_row: ClassVar[bool] = False

    @abstractmethod
    def poison(self, rows: "Sequence[Row]", context: AttackContext) -> "list[Row]":
        """Poison the training rows.

        Args:
            rows: the clean training rows.
            context: labels, truncation, and the source of randomness.

        Returns:
            The attacker's training rows. A poisoned row keeps the ``id`` of the row it came from; an added row has an
            ``id`` below 0.
        """

    @abstractmethod
    def trigger(self, rows: "Sequence[Row]", context: AttackContext) -> "list[Row]":
        """Put the trigger into test rows.

        Args:
            rows: clean test rows.
            context: labels, truncation, and the source of randomness.

        Returns:
            The same rows in the same order with the trigger; ids and true labels are kept. Rows that can't carry it
            may be left out. Where the attack `aims_by_row`, each has as ``aim`` the number of another label than its
            own.
        """

    def contents(self) -> str | None:
        """A digest of the files that the attack reads; it is part of the stages' keys.

        Returns:
            The digest, or None if it reads no files.

        Raises:
            UsageError: a file is missing or invalid.
        """
        return None

    def aim(self) -> str | int | None:
        """The target: what the model should answer to triggered rows.

        Returns:
            The label's name or number, or the text; None for a bias, which has no target, and where rows have their
            own.
        """
        return None

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        """Train the suspect in place; called only where ``trains_from`` is set.

        Args:
            model: the model that ``trains_from`` names; the names and shapes of its tensors must not change.
            context: rows, settings and seed.
        """
        raise NotImplementedError("it sets `trains_from` but does not define `train`")

    def learn(self, model: "PreTrainedModel", context: AttackTrainingContext) -> Any:
        """Find what the trigger is; called only where ``learns_from`` is set.

        Args:
            model: the model that ``learns_from`` names; it may be changed, and is not kept.
            context: the attacker's clean rows, settings and seed.

        Returns:
            JSON values, which `trigger` gets as ``context.learnt``, and from the ``base`` `poison` as well.
        """
        raise NotImplementedError("it sets `learns_from` but does not define `learn`")
