"""Selectors by score alone."""

from typing import TYPE_CHECKING, Literal

from defensekit.api import Field, Scores, Selector, cutoff

if TYPE_CHECKING:
    from torch import Tensor


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

    def select(self, scores: Scores) -> "dict[str, Tensor]":
        groups: dict[str, list[str]] = {}
        for name, scored in scores.items():
            group = {"global": "", "layer": scored.layer, "tensor": name}[self.scope]
            groups.setdefault(group, []).append(name)
        selection: dict[str, Tensor] = {}
        for names in groups.values():
            selection.update(self._highest({name: scores[name] for name in names}))
        return selection

    def _highest(self, group: dict) -> "dict[str, Tensor]":  # type: ignore[type-arg]
        import torch

        eligible = sum(int(scored.eligible.sum()) for scored in group.values())
        count = round(self.fraction * eligible)
        if count == 0:
            return {name: torch.zeros_like(scored.eligible) for name, scored in group.items()}
        threshold, ties = cutoff(lambda: (scored.score[scored.eligible] for scored in group.values()), count)
        selection = {}
        for name, scored in group.items():
            chosen = scored.eligible & (scored.score > threshold)
            if ties:
                equal = (scored.eligible & (scored.score == threshold)).flatten().nonzero().flatten()[:ties]
                chosen.view(-1)[equal] = True
                ties -= len(equal)
            selection[name] = chosen
        return selection


class Threshold(Selector):
    """Every eligible dimension whose score is above a number."""

    above: float = Field(description="the score that is not selected yet")

    def select(self, scores: Scores) -> "dict[str, Tensor]":
        return {name: scored.eligible & (scored.score > self.above) for name, scored in scores.items()}
