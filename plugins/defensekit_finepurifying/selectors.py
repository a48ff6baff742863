"""Selectors that use nothing but the scores."""

import math
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from defensekit.api import Cut, Field, Scores, Selector, count_bins, fit_mixture


class Fraction(Selector):
    """The highest scores: a share of the eligible dimensions, counted exactly.

    Papers' reserve ratio rho is 1 - fraction. Equal scores are ordered by the tensor's name, then by
    the position in the tensor.
    """

    fraction: float = Field(ge=0, le=1, description="the share of eligible dimensions that is selected")
    scope: Literal["global", "layer", "tensor", "embeddings"] = Field(
        "global",
        description="whether scores compete over the whole model, within a layer, within a tensor, or within the "
        "embeddings and within the rest",
    )

    def takes_nothing(self) -> bool:
        return self.fraction == 0

    def select(self, scores: Scores) -> dict[str, Cut]:
        groups: dict[str, list[str]] = {}
        for name in scores:
            apart = "embeddings" if scores.embedding(name) else ""
            group = {"global": "", "layer": scores.layer(name), "tensor": name, "embeddings": apart}[self.scope]
            groups.setdefault(group, []).append(name)
        return {name: cut for names in groups.values() for name, cut in self._highest(scores, names).items()}

    def _highest(self, scores: Scores, names: list[str]) -> dict[str, Cut]:
        above, ties = scores.cutoff(names, lambda eligible: round(self.fraction * eligible))
        equal = scores.equal(names, above) if ties else {}
        cuts = {}
        for name in names:
            cuts[name] = Cut(above, min(ties, equal.get(name, 0)))
            ties -= cuts[name].ties
        return cuts


class Threshold(Selector):
    """Every eligible dimension whose score is above a number."""

    lower_does_more: ClassVar[frozenset[str]] = frozenset({"above"})

    above: float = Field(description="scores above this are selected")

    def select(self, scores: Scores) -> dict[str, Cut]:
        return {name: Cut(self.above) for name in scores}


class GammaMixture(Selector):
    """Every eligible dimension that more likely belongs to the abnormal one of two Gamma laws.

    For scores r = delta^2 / H (``scorer: diffusion``): by the theory those of clean dimensions follow Gamma(1/2, 2k),
    those of poisonous ones the same with a larger k (Zhang et al. 2023; whether the paper selects in this way is not
    verified). Both are fitted by maximum likelihood to all positive scores of eligible dimensions
    (`defensekit.api.fit_mixture`). Where their means are closer than a factor of four there is one law, and nothing is
    selected. Models trained by AdamW do not follow it: `defensekit scan` says how far off they are.

        selector: {name: gamma-mixture, false_discovery_rate: 0.1}
    """

    lower_does_more: ClassVar[frozenset[str]] = frozenset({"posterior"})

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

    def select(self, scores: Scores) -> dict[str, Cut]:
        counts = None
        for name in scores:
            for part in scores.parts(name):
                binned = count_bins(part.score[part.eligible & (part.score > 0)].double().log2())
                counts = binned if counts is None else counts + binned
        if self.takes_nothing() or counts is None or not counts.any():
            return {name: Cut(math.inf) for name in scores}
        fitted = fit_mixture(counts)
        if self.false_discovery_rate is not None:
            above = fitted.above_false_discovery(counts, self.false_discovery_rate)
        else:
            above = fitted.above(0.5 if self.posterior is None else self.posterior)
        return {name: Cut(above) for name in scores}
