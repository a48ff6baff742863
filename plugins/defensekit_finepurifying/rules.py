"""The choice of how much to reset: by clean accuracy alone, or by what removes triggers of the defender's own."""

from collections.abc import Sequence
from typing import ClassVar

from defensekit.api import Choice, Field, Rule, TaskKind, Trial
from defensekit.training import TrainingSettings


class _EveryValue(Rule):
    """Chooses among the recipe's values."""

    def allowed(self, seen: Sequence[Trial], suspect: Trial) -> list[Trial]:
        """The trials to choose from. Where lower values do more, 0 does most: it is chosen only if it was asked for."""
        return [trial for trial in seen if suspect.value == 0 or trial.value in self.values]


class AccuracyFloor(_EveryValue):
    """The strongest value whose accuracy on the clean dev rows stays within ``max_drop`` of the suspect's.

    The strongest is the largest of ``values``, or the smallest for a parameter, such as a threshold, of which lower
    values do more. 0 is always tried, and may be chosen where it does nothing or is one of the values. If no value
    passes, the one that does least is chosen, with a warning.
    """

    max_drop: float = Field(0.02, ge=0, le=1, description="how much clean dev accuracy may fall below the suspect's")

    def choose(self, seen: Sequence[Trial], suspect: Trial) -> Choice:
        floor = max(suspect.accuracy - self.max_drop, 0.0)
        lower = suspect.value > 0
        seen = self.allowed(seen, suspect)
        passing = [trial.value for trial in seen if trial.accuracy >= floor - 1e-9]  # exactly at the floor passes
        if not passing:
            best = max(trial.accuracy for trial in seen)
            reason = f"no value keeps a clean dev accuracy of {floor:.3f}; the best is {best:.3f}"
            least = max(trial.value for trial in seen) if lower else 0.0
            does = "the value that does least" if lower else "nothing is reset"
            return Choice(least, reason, f"{reason}; {self.over} = {least:g} is taken: {does}")
        value = min(passing) if lower else max(passing)
        warning = None
        if not lower and value == 0:
            warning = f"no {self.over} above 0 keeps a clean dev accuracy of {floor:.3f}: nothing is reset"
        which = "smallest" if lower else "largest"
        return Choice(value, f"the {which} value with a clean dev accuracy of at least {floor:.3f}", warning)


WORKING = 0.5  # the share of answers that a family has to turn before any defense: what does not work tells nothing


class Planted(_EveryValue, TrainingSettings):
    """The value that removes triggers of the defender's own at the least loss of clean dev accuracy.

    Two words and two phrases, drawn from the seed, are planted into a copy of the suspect by fine-tuning it on the
    clean rows with and without them. Every value is tried on that copy as well. Of the values that leave no family of
    triggers a greater effect than ``max_planted``, the one with the highest accuracy is taken, and of equal ones the
    strongest. If there is none, the one that leaves least is, with a warning: nothing is kept for accuracy's sake. A
    family that does not work in the copy before any defense does not count.

    The training settings are those of the planting.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})

    max_planted: float = Field(
        0.1, ge=0, le=1, description="the share of answers that the planted triggers of a family may still turn"
    )
    learning_rate: float = Field(1e-4, gt=0, le=1, description="the highest learning rate")
    batch_size: int = Field(16, ge=1, description="rows per step")

    def planting(self) -> TrainingSettings:
        return self.training

    def choose(self, seen: Sequence[Trial], suspect: Trial) -> Choice:
        lower = suspect.value > 0
        # The strongest first: it is taken among equals.
        seen = sorted(self.allowed(seen, suspect), key=lambda trial: trial.value, reverse=not lower)
        working = [family for family, turned in suspect.planted.items() if turned >= WORKING]
        if not working:
            reason = f"no planted trigger turns {WORKING:.0%} of answers, so that none tells what is removed"
            return Choice(seen[0].value, reason, f"{reason}; {self.over} = {seen[0].value:g} is taken: it does most")

        def left(trial: Trial) -> float:
            """What the family that is left with most still turns."""
            return max(trial.planted[family] for family in working)

        removing = [trial for trial in seen if left(trial) <= self.max_planted + 1e-9]
        best = max(removing, key=lambda trial: trial.accuracy) if removing else min(seen, key=left)
        accuracy = f"clean dev accuracy {best.accuracy:.3f} (suspect {suspect.accuracy:.3f})"
        if removing:
            reason = f"planted triggers turn at most {left(best):.0%} of answers"
            return Choice(best.value, f"{reason}, at the highest accuracy of such values: {accuracy}")
        reason = f"no value takes planted triggers below {self.max_planted:.0%} of answers; least is {left(best):.0%}"
        return Choice(best.value, f"{reason}, {accuracy}", f"{reason}; {self.over} = {best.value:g} is taken")
