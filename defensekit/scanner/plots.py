"""The figures of a scan."""

from typing import TYPE_CHECKING, Any

from defensekit.result.plots import COLOURS, canvas
from defensekit.scanner.result import Law

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ratios(law: Law) -> "Figure":
    """How r = delta^2 / H is spread over factors of two, beside one Gamma(1/2, 2k) and the mixture of two."""
    import numpy as np
    from scipy.special import erf

    edges = law.first + np.arange(len(law.counts) + 1)

    def within(mean: float) -> Any:
        return np.diff(erf(np.sqrt(2.0**edges / (2 * mean))))

    total = sum(law.counts)
    mean = (1 - law.share) * law.normal + law.share * law.abnormal
    with canvas(7, 3.1) as (figure, [axes]):
        axes.bar(edges[:-1], np.array(law.counts) / total, width=1, align="edge", color="#BBBBBB", label="seen")
        both = (1 - law.share) * within(law.normal) + law.share * within(law.abnormal)
        axes.stairs(within(mean), edges, color=COLOURS[0], linestyle="--", linewidth=1.5, label="one law")
        axes.stairs(both, edges, color=COLOURS[1], linewidth=1.5, label="two laws")
        axes.set_xlabel("log2 of r")
        axes.set_ylabel("share of dimensions")
        axes.legend(loc="upper right", fontsize=9)
        return figure
