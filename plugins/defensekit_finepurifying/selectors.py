"""Selectors by score alone."""

from typing import Literal

from defensekit.api import Cut, Field, Scores, Selector


class Fraction(Selector):
    """The highest scores: a share of the eligible dimensions, counted exactly.

    Papers' reserve ratio rho is 1 - fraction. Of equal scores those come first whose tensor's name does, then those
    that stand first in the tensor.
    """

    fraction: float = Field(ge=0, le=1, description="the share of eligible dimensions that is selected")
    scope: Literal["global", "layer", "tensor"] = Field(
        "global", description="whether scores compete over the whole model, within a layer or within a tensor"
    )

    def takes_nothing(self) -> bool:
        return self.fraction == 0

    def select(self, scores: Scores) -> dict[str, Cut]:
        groups: dict[str, list[str]] = {}
        for name in scores:
            group = {"global": "", "layer": scores.layer(name), "tensor": name}[self.scope]
            groups.setdefault(group, []).append(name)
        return {name: cut for names in groups.values() for name, cut in self._highest(scores, names).items()}

    def _highest(self, scores: Scores, names: list[str]) -> dict[str, Cut]:
        above, ties = scores.cutoff(names, lambda eligible: round(self.fraction * eligible))
        equal = scores.equal(names, above) if ties else {}
        found = {}
        for name in names:
            found[name] = Cut(above, min(ties, equal.get(name, 0)))
            ties -= found[name].ties
        return found


class Threshold(Selector):
    """Every eligible dimension whose score is above a number."""

    above: float = Field(description="the score that is not selected yet")

    def select(self, scores: Scores) -> dict[str, Cut]:
        return {name: Cut(self.above) for name in scores}
