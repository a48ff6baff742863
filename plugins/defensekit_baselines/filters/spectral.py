"""Spectral signatures, and what chance does."""

from typing import TYPE_CHECKING, Literal

from defensekit.api import Field, Filter, FilterContext
from defensekit_baselines.filters import by_label

if TYPE_CHECKING:
    import numpy as np


class SpectralSignatures(Filter):
    """The squared projection of a row's features on the direction in which those of its label vary most.

    Spectral signatures (Tran, Li, Madry, NeurIPS 2018, arXiv 1811.00636): features are centred within a label, the
    direction is the first right singular vector. Of every label, 1.5 times as many rows as may be poisoned are taken;
    nobody tells a defender how many that are. Code read: MadryLab/backdoor_data_poisoning, which projects features
    without centring them, and the Adversarial Robustness Toolbox, which centres and squares. Ours: features are what
    the classifier's head reads.
    """

    fraction: float | None = Field(
        0.15, ge=0, le=1, description="the share of the rows that is taken: 1.5 times what may be poisoned"
    )
    scope: Literal["global", "label"] = Field(
        "label", description="whether the fraction is one of all rows, or of the rows of every label"
    )

    def score(self, context: FilterContext) -> "np.ndarray":
        import numpy as np

        scores = np.zeros(len(context.rows))
        for members, hidden in by_label(context):
            centred = hidden - hidden.mean(axis=0)
            _, _, directions = np.linalg.svd(centred, full_matrices=False)
            scores[members] = (centred @ directions[0]) ** 2
        return scores


class RandomRows(Filter):
    """A score drawn for every row: what it does to take as many rows by chance."""

    fraction: float | None = Field(0.15, ge=0, le=1, description="the share of the rows that is taken")

    def score(self, context: FilterContext) -> "np.ndarray":
        import numpy as np

        return np.random.default_rng(context.seed).random(len(context.rows))
