"""Rules: the choice of a parameter's value by the accuracy on clean rows."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, get_args

from pydantic import Field

from defensekit.components.base import Component
from defensekit.text import TaskKind

if TYPE_CHECKING:
    from defensekit.training import TrainingSettings


@dataclass(frozen=True)
class Trial:
    """A value that was tried.

    Attributes:
        value: the value of the parameter.
        accuracy: the accuracy on the clean dev rows, in [0, 1]; with folds on all clean rows, each answered by a model
            that was not made from it.
        rows: how many rows these are.
        planted: for a rule that plants: the share of answers that each family of planted triggers turns, less the
            share that answers so without them, in [-1, 1].
    """

    value: float
    accuracy: float
    rows: int
    planted: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The chosen value.

    Attributes:
        value: the value.
        reason: why it was chosen, in one sentence.
        warning: a warning for the user, if any.
    """

    value: float
    reason: str
    warning: str | None = None


class Rule(Component):
    """Proposes values of a parameter and chooses one of those that were tried."""

    kind: ClassVar[str] = "rule"
    tasks: ClassVar[frozenset[TaskKind]] = frozenset(get_args(TaskKind))  # it is shown accuracies alone

    over: str = Field("selector.fraction", description="the parameter of the defense that is chosen, as a dotted path")
    values: tuple[float, ...] = Field(
        min_length=1, description="the values to try; 0 is always tried", examples=[(0.25, 0.5)]
    )

    folds: int | None = Field(
        None,
        ge=2,
        description="parts of all clean and dev rows: every value is tried without each, which then measures it; null: "
        "tried once, on the clean rows, and measured by the dev rows",
    )

    def planting(self) -> "TrainingSettings | None":
        """How to plant triggers of the defender's own into a copy of the suspect, on which values are tried as well.

        Returns:
            The settings of that training; None for a rule that needs no copy.
        """
        return None

    def propose(self, seen: Sequence[Trial]) -> float | None:
        """Propose the next value: 0 and every one of the recipe's, the lowest first.

        As it is here it does not depend on what was seen, so that values are tried side by side. Those that a rule
        proposes by a method of its own are tried one after the other.

        Args:
            seen: the trials so far.

        Returns:
            The value to try next, or None to stop.
        """
        tried = {trial.value for trial in seen}
        return next((value for value in sorted({0.0, *self.values}) if value not in tried), None)

    @abstractmethod
    def choose(self, seen: Sequence[Trial], suspect: Trial) -> Choice:
        """Choose a value.

        Args:
            seen: all trials.
            suspect: the unchanged suspect on the same rows. Its ``value`` is the one at which the defense does nothing:
                0, or infinity for a parameter in ``lower_does_more``; its ``planted`` is what the copy does before
                any defense.

        Returns:
            The value of one of the trials, with a reason.
        """
