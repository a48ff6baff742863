"""Several studies as one."""

from collections.abc import Sequence
from functools import cached_property

from defensekit.result.schema import Result
from defensekit.studies.frame import Finished, RunRecord
from defensekit.utils.errors import UsageError
from defensekit.utils.files import data_digest

STUDY = "study"  # the axis that says which one a run is of
ATTACK = "attack"


class Joined(Finished):
    """Studies that were read, as one: what was run and what came out, for tables of all of them."""

    def __init__(self, studies: Sequence[Finished]) -> None:
        names = [study.name for study in studies]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise UsageError(f"two of them are called {twice[0]!r}, and a table could not tell them apart")
        self.studies = studies
        self.name = ", ".join(names)
        self.of: dict[str, tuple[Finished, str]] = {}
        self.runs: list[RunRecord] = []
        of_attacks = any(ATTACK in study.axes for study in studies)
        for study in studies:
            if STUDY in study.axes:
                raise UsageError(f"{study.name} has an axis {STUDY!r}, which says here which study a run is of")
            for run in study.runs:
                id = data_digest([study.name, run.id])[:16]  # two studies may have a run in common
                self.of[id] = (study, run.id)
                axes = {STUDY: study.name, **run.axes} if len(studies) > 1 else {**run.axes}
                if of_attacks and ATTACK not in study.axes and run.id in study.done:
                    # A study of one attack stands under its name, where others have several.
                    axes[ATTACK] = study.result(run.id).recipe.get("attack", {}).get("name")
                self.runs.append(RunRecord(id=id, axes=axes, seed=run.seed))
        self.done = {id for id, (study, own) in self.of.items() if own in study.done}
        self.failures = {id: study.failures[own] for id, (study, own) in self.of.items() if own in study.failures}
        self.lower_does_more = set()
        self._metrics = {}

    @cached_property
    def axes(self) -> dict[str, list[str | int | float | bool | None]]:
        """The values on every axis; None where a study does not have it."""
        several = [STUDY] if len(self.studies) > 1 else []
        names = dict.fromkeys([*several, *(axis for study in self.studies for axis in study.axes)])
        return {name: list(dict.fromkeys(run.axes.get(name) for run in self.runs)) for name in names}

    @cached_property
    def defenses(self) -> set[str]:
        """The axes that change nothing but the defense in any of them."""
        return {
            axis
            for axis in self.axes
            if axis != STUDY and all(axis in study.defenses for study in self.studies if axis in study.axes)
        }

    def result(self, id: str) -> Result:
        """The result of a run that is done."""
        study, own = self.of[id]
        return study.result(own)
