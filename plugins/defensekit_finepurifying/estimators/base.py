"""Base classes of the estimators of curvature."""

from typing import ClassVar, Literal

from defensekit.api import Estimator, Field


class Curvature(Estimator):
    """Provides ``curvature``, measured at the weights of the suspect or of the base."""

    provides: ClassVar[frozenset[str]] = frozenset({"curvature"})

    anchor: Literal["suspect", "base"] = Field(
        "suspect", description="whose weights the gradients are taken at (base: with the suspect's head)"
    )


class PerSample(Curvature):
    """An estimator based on squared per-sample gradients."""

    budget_mib: int = Field(16, ge=1, description="MiB held besides activations and the result; sets the batch size")
    held_mib: int = Field(
        4096,
        ge=1,
        description="MiB of the result held at a time; larger models are measured a few layers at a time",
    )
