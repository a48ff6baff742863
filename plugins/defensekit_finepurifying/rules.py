"""The choice of how much to reset, by clean accuracy alone."""

from collections.abc import Sequence

from defensekit.api import Choice, Field, Rule, Trial


class AccuracyFloor(Rule):
    """The strongest value whose accuracy on the clean dev rows stays within ``max_drop`` of the suspect's.

    The strongest is the largest of ``values``, or the smallest for a parameter, such as a threshold, of which lower
    values do more. 0 is always tried, and may be chosen where it does nothing or is one of the values. If no value
    passes, the one that does least is chosen, with a warning.
    """

    max_drop: float = Field(0.02, ge=0, le=1, description="how much clean dev accuracy may fall below the suspect's")

    def propose(self, seen: Sequence[Trial]) -> float | None:
        tried = {trial.value for trial in seen}
        return next((value for value in sorted({0.0, *self.values}) if value not in tried), None)

    def choose(self, seen: Sequence[Trial], suspect: Trial) -> Choice:
        floor = max(suspect.accuracy - self.max_drop, 0.0)
        lower = suspect.value > 0
        # Where a lower value does more, 0 does most: it is chosen only if it is one of the values.
        seen = [trial for trial in seen if not lower or trial.value in self.values]
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
