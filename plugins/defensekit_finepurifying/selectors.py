"""Selectors by score alone."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from defensekit.api import Field, Scores, Selector, count_bins, cutoff, fit_mixture

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


class GammaMixture(Selector):
    """Every eligible dimension that more likely belongs to the abnormal one of two Gamma laws.

    For scores r = delta^2 / H (``scorer: diffusion``): by the theory those of clean dimensions follow Gamma(1/2, 2k),
    those of poisonous ones the same with a larger k (Zhang et al. 2023; whether the paper selects in this way is not
    verified). Both are fitted by maximum likelihood to all positive scores of eligible dimensions
    (`defensekit.mixture`). Where their means are closer than a factor of four there is one law, and nothing is
    selected. Models trained by AdamW do not follow it: `defensekit scan` says how far off they are.

        selector: {name: gamma-mixture, false_discovery_rate: 0.1}
    """

    posterior: float | None = Field(
        None, gt=0, lt=1, description="select where the probability to be abnormal is above this (0.5)"
    )
    false_discovery_rate: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="or as many as keep the expected share of normal ones among the selected under this",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.posterior is not None and self.false_discovery_rate is not None:
            raise ValueError("expected either `posterior` or `false_discovery_rate`")
        return self

    def takes_nothing(self) -> bool:
        return self.false_discovery_rate == 0

    def select(self, scores: Scores) -> "dict[str, Tensor]":
        import numpy as np
        import torch

        positive = {name: scored.eligible & (scored.score > 0) for name, scored in scores.items()}
        counts = np.sum([count_bins(s.score[positive[name]].double().log2()) for name, s in scores.items()], axis=0)
        if self.takes_nothing() or not counts.any():
            return {name: torch.zeros_like(scored.eligible) for name, scored in scores.items()}
        fitted = fit_mixture(counts)
        if self.false_discovery_rate is not None:
            above = fitted.above_false_discovery(counts, self.false_discovery_rate)
        else:
            above = fitted.above(0.5 if self.posterior is None else self.posterior)
        return {name: positive[name] & (scored.score.double() > above) for name, scored in scores.items()}
