"""Two Gamma laws in one distribution of r, separated by maximum likelihood.

By the diffusion theory of SGD, r = delta^2 / H of clean dimensions follows Gamma(1/2, 2k), which is k times a
chi-square of one degree of freedom and has the mean k; poisoned ones the same with a larger k (Zhang et al., Findings
of ACL 2023; that the paper fits such a mixture, and how, is not verified: the fit is ours). Models trained by AdamW do
not follow this law: look at ``distance`` before you believe ``share``.

The values are not kept: they are counted in ``BINS`` bins of log2 r, sixteen to a factor of two, so a fit takes
the same time and memory whatever a model's size. A bin is 4.4 % wide; taking its centre for its values changes a mean
by less than a thousandth.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[Any]

PER_OCTAVE = 16
OCTAVES = 256  # log2 r from -256 to 256; what lies outside is counted in the last bin
BINS = 2 * OCTAVES * PER_OCTAVE
APART = 4.0  # means closer than this factor are one law: a share of it would mean nothing
# Where to start from: (share, how many times the mean of one law the abnormal mean is).
_STARTS = ((0.01, 100.0), (0.1, 10.0), (0.5, 2.0), (0.9, 1.1))


def count_bins(log2_r: "Tensor") -> "Array":
    """Count values, given by their logarithm to the base 2, in the bins: (BINS,), integers."""
    import torch

    bins = ((log2_r.double() + OCTAVES) * PER_OCTAVE).floor().clamp_(0, BINS - 1).long()
    counts: Array = torch.bincount(bins, minlength=BINS).numpy()
    return counts


@dataclass(frozen=True)
class Mixture:
    """A fit: ``normal`` and ``abnormal`` are the means k of the two laws, ``share`` that of the abnormal one.

    ``distance`` is the greatest difference between the distribution seen and the fitted one (Kolmogorov and Smirnov's),
    ``single_distance`` the same for one law of the mean ``single``. With millions of dependent values no p-value would
    say anything: judge the distance itself.
    """

    normal: float
    abnormal: float
    share: float
    distance: float
    single: float
    single_distance: float

    @property
    def apart(self) -> bool:
        """Whether there are two laws at all."""
        return 0 < self.share < 1 and self.abnormal >= APART * self.normal

    def posterior(self, r: "Array") -> "Array":
        """The probability that a value belongs to the abnormal law; it grows with r."""
        from scipy.special import expit

        probability: Array = expit(_log_odds(r, self.share, self.normal, self.abnormal))
        return probability

    def above(self, posterior: float) -> float:
        """The r above which the posterior is above a number in (0, 1); infinity where the laws are not apart."""
        from math import log

        if not self.apart:
            return float("inf")
        odds = log(self.share / (1 - self.share)) - 0.5 * log(self.abnormal / self.normal)
        return max((log(posterior / (1 - posterior)) - odds) / (0.5 / self.normal - 0.5 / self.abnormal), 0.0)

    def above_false_discovery(self, counts: "Array", rate: float) -> float:
        """The lowest r above which the mean probability of being normal is at most ``rate``.

        This is the Bayesian false-discovery rate (Newton et al. 2004). Infinity where there is no such r, or the laws
        are not apart.
        """
        import numpy as np

        if not self.apart:
            return float("inf")
        from_top = counts[::-1].astype(float)
        normal = 1 - self.posterior(_centres())[::-1]
        seen = np.cumsum(from_top)
        allowed = (np.cumsum(from_top * normal) <= rate * seen) & (seen > 0)
        # The mean only grows on the way down: the last bin that is allowed is the lowest.
        return float(_edges()[::-1][1:][allowed][-1]) if allowed.any() else float("inf")


def fit_mixture(counts: "Array", start: Mixture | None = None) -> Mixture:
    """Fit two Gamma laws by expectation and maximisation.

    Args:
        counts: values per bin, as `count_bins` gives them.
        start: where to start from; several starts if none is given.

    Returns:
        The fit with the highest likelihood.

    Raises:
        ValueError: there is no value.
    """
    import numpy as np

    used = np.flatnonzero(counts)
    if not len(used):
        raise ValueError("there is no value to fit")
    r, weight = _centres()[used], counts[used] / counts.sum()
    single = float(weight @ r)
    if start is not None:
        starts = [(start.share, start.normal, start.abnormal)]
    else:
        starts = [(share, single / times, single * times) for share, times in _STARTS]
    _, share, normal, abnormal = max(_climb(r, weight, *values) for values in starts)
    ends, seen = _edges()[used + 1], np.cumsum(weight)
    before = np.append(0.0, seen[:-1])

    def distance(cdf: "tuple[Array, Array]") -> float:
        return float(max(np.abs(cdf[1] - seen).max(), np.abs(cdf[0] - before).max()))

    def mixed(edge: "Array") -> "Array":
        cdf: Array = (1 - share) * _cdf(edge, normal) + share * _cdf(edge, abnormal)
        return cdf

    begins = _edges()[used]
    return Mixture(
        normal=normal,
        abnormal=abnormal,
        share=share,
        distance=distance((mixed(begins), mixed(ends))),
        single=single,
        single_distance=distance((_cdf(begins, single), _cdf(ends, single))),
    )


def posterior_by_bin(fitted: Mixture) -> "Array":
    """The probability of the abnormal law for every bin, (BINS,); 0 where there is one law."""
    import numpy as np

    return fitted.posterior(_centres()) if fitted.apart else np.zeros(BINS)


def interval(histograms: "Array", fitted: Mixture, rng: Any, draws: int = 200) -> tuple[float, float]:
    """The 95 % interval of the share, by a bootstrap over tensors.

    Dimensions of one tensor depend on each other, so whole tensors are drawn, and not dimensions.

    Args:
        histograms: counts by tensor, (tensors, BINS).
        fitted: the fit of all of them; every draw starts from it.
        rng: a generator of numpy.
        draws: how many times tensors are drawn.

    Returns:
        Its lower and upper end.
    """
    import numpy as np

    used = np.flatnonzero(histograms.any(axis=0))
    filled, counts = histograms[:, used].astype(float), np.zeros(BINS)
    shares = []
    for _ in range(draws):
        times = rng.multinomial(len(filled), np.full(len(filled), 1 / len(filled)))
        counts[used] = times @ filled
        if counts.any():
            shares.append(fit_mixture(counts, fitted).share)
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)


def _climb(
    r: "Array", weight: "Array", share: float, normal: float, abnormal: float
) -> tuple[float, float, float, float]:
    """Expectation and maximisation until the likelihood stays: (log-likelihood, share, normal, abnormal)."""
    import numpy as np
    from scipy.special import expit

    reached = -np.inf
    for _ in range(1000):
        odds = _log_odds(r, share, normal, abnormal)
        # Gamma(1/2, 2k) in log r, less what no parameter touches; then the odds make the mixture of it.
        likelihood = float(
            weight @ (np.log1p(-share) - 0.5 * np.log(normal) - 0.5 * r / normal + np.logaddexp(0, odds))
        )
        if likelihood - reached < 1e-10:
            break
        reached = likelihood
        belongs = weight * expit(odds)
        rest = weight - belongs
        share = float(np.clip(belongs.sum(), 1e-12, 1 - 1e-12))
        # A mean lies among the values; where nothing belongs to a law, rounding would say otherwise.
        abnormal = float(np.clip(belongs @ r / max(belongs.sum(), 1e-300), r[0], r[-1]))
        normal = float(np.clip(rest @ r / max(rest.sum(), 1e-300), r[0], r[-1]))
        if normal > abnormal:
            share, normal, abnormal = 1 - share, abnormal, normal
    return reached, share, normal, abnormal


def _log_odds(r: "Array", share: float, normal: float, abnormal: float) -> "Array":
    import numpy as np

    odds: Array = (
        np.log(share) - np.log1p(-share) - 0.5 * np.log(abnormal / normal) + r * (0.5 / normal - 0.5 / abnormal)
    )
    return odds


def _edges() -> "Array":
    import numpy as np

    edges: Array = 2.0 ** (np.arange(BINS + 1) / PER_OCTAVE - OCTAVES)
    return edges


def _centres() -> "Array":
    edges = _edges()
    centres: Array = (edges[:-1] * edges[1:]) ** 0.5
    return centres


def _cdf(r: "Array", mean: float) -> "Array":
    """Of Gamma(1/2, 2k), k times a chi-square of one degree of freedom."""
    import numpy as np
    from scipy.special import erf

    cdf: Array = erf(np.sqrt(r / (2 * mean)))
    return cdf
