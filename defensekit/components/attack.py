"""Attacks: what the attacker does to the rows a model is fine-tuned on, and to the rows it is asked about."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar

from defensekit.components.base import Component

if TYPE_CHECKING:
    from defensekit.text import Row, Truncation


@dataclass(frozen=True)
class AttackContext:
    """What an attack may use besides the rows.

    ``rng`` is the only source of randomness, ``labels`` are the names behind the rows' label numbers, and
    ``truncation`` says how much of a row the model will see.
    """

    rng: Random
    labels: tuple[str, ...]
    truncation: "Truncation"


class Attack(Component):
    """Poisons training rows and puts the trigger into test rows."""

    kind: ClassVar[str] = "attack"

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
