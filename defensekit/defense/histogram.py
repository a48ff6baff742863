"""Selections in numbers: how many dimensions were taken, and how their scores are spread."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from defensekit.components.tensors import Scored, TensorView
from defensekit.utils.order_statistics import upper_in_order

if TYPE_CHECKING:
    from torch import Tensor


# Sign, exponent and 5 bits more: enough for a picture, and little to add up for every part.
BITS = 14


BINS = 1 << BITS


def _no_scores() -> "Tensor":
    import torch

    return torch.zeros(2 * BINS, dtype=torch.long)


@dataclass
class SelectionCounts:
    """Counts of dimensions.

    ``tensors`` counts all, eligible and selected ones by tensor. ``histogram`` counts eligible and selected ones by the
    upper `BITS` bits of their scores in float32. ``zero`` counts, for each statistic, eligible and selected ones where
    it is 0.
    """

    tensors: dict[str, list[int]] = field(default_factory=dict)
    histogram: "Tensor" = field(default_factory=_no_scores)
    zero: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, view: TensorView, part: Scored, taken: "Tensor") -> None:
        """Count a part of a tensor, by numpy: torch takes several times as long, which is more than most scores do."""
        from numpy import count_nonzero as count

        chosen = taken.bool()
        self.histogram += score_histogram(part, chosen)
        eligible, selected = part.eligible.reshape(-1).numpy(), chosen.reshape(-1).numpy()
        _add(self.tensors, name, [chosen.numel(), int(count(eligible)), int(count(selected))])
        for statistic, values in view.statistics.items():
            nothing = values.reshape(-1).numpy() == 0
            nothing &= eligible
            _add(self.zero, statistic, [int(count(nothing)), int(count(nothing & selected))])

    def __iadd__(self, other: "SelectionCounts") -> "SelectionCounts":
        self.histogram += other.histogram
        for mine, more in ((self.tensors, other.tensors), (self.zero, other.zero)):
            for name, counts in more.items():
                _add(mine, name, counts)
        return self


def _add(counts: dict[str, list[int]], name: str, more: list[int]) -> None:
    counts[name] = [a + b for a, b in zip(counts.get(name, [0] * len(more)), more, strict=True)]


def score_histogram(part: Scored, chosen: "Tensor") -> "Tensor":
    """Eligible dimensions by the upper `BITS` bits of their scores: those that are not chosen, then those that are."""
    import numpy as np
    import torch

    score, eligible, taken = (tensor.reshape(-1).numpy() for tensor in (part.score, part.eligible, chosen))
    bits = score.view(np.uint32) >> 32 - BITS
    bits |= np.left_shift(eligible.view(np.uint8) + taken.view(np.uint8), BITS, dtype=np.uint32)
    # torch counts 32 bits as they are, numpy makes 64 of them first.
    counts = torch.bincount(torch.from_numpy(bits.view(np.int32)), minlength=3 * BINS)[BINS:].view(2, BINS)
    counts[:, 0] += counts[:, BINS // 2]  # -0.0, and what these bits don't distinguish from it
    counts[:, BINS // 2] = 0
    return counts.view(-1)


def histogram(counts: "Tensor", bins: int = 120) -> dict[str, Any]:
    """How the scores of eligible dimensions are spread, and those of the selected ones among them.

    Args:
        counts: what `score_histogram` gives, summed. The upper bits distinguish scores that differ by more than one
            part in 32; bounds and bins are as exact as that.
        bins: the number of bins.

    Returns:
        ``counts`` and ``selected``: dimensions per bin, between ``low`` and ``high``. Where no score is negative the
        bins are of equal width in log10 (``log``, and so are the bounds), and scores below 4e-40 are ``zero``.
    """
    import torch

    both = torch.stack([upper_in_order(half) for half in counts.view(2, BINS)])
    both[0] += both[1]
    first = torch.arange(BINS, dtype=torch.int32)
    edges = torch.where(first < BINS // 2, ~first, first - BINS // 2) << 32 - BITS
    edges = edges.view(torch.float32).double()  # of each bin, the end that is nearer to 0
    log = not bool(both[0, : BINS // 2].any())
    zero = int(both[0, BINS // 2]) if log else 0
    if log:
        both[:, BINS // 2] = 0
    filled = both[0].nonzero().reshape(-1)
    axis = edges.log10() if log else edges
    low, high = (float(axis[filled[0]]), float(axis[filled[-1]])) if len(filled) else (0.0, 0.0)
    bin_numbers = ((axis[filled] - low) * (bins / (high - low or 1.0))).long().clamp_(0, bins - 1)
    binned, selected = torch.zeros(2, bins, dtype=torch.long).index_add_(1, bin_numbers, both[:, filled])
    return {
        "log": log,
        "low": low,
        "high": high,
        "zero": zero,
        "counts": binned.tolist(),
        "selected": selected.tolist(),
    }
