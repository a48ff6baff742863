"""Selections: what a selector answers, held to its contract, looked at a part of a tensor at a time, in numbers."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from defensekit.components import Selector, blame, fault
from defensekit.ranking import concurrently, upper_in_order
from defensekit.scoring import Computed, Scored, Scores, TensorView, Views, anything

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """A selection of one tensor by score alone: the eligible dimensions whose score is ``above`` a number, and the
    first ``ties`` of those that equal it. It takes no memory, whatever the tensor's size."""

    above: float
    ties: int = 0

    def take(self, scored: Scored) -> "Tensor":
        """The selection of a tensor or a part of one; of a part, ``ties`` counts from its beginning."""
        return _take(self, scored)[0]


def _take(cut: Cut, scored: Scored) -> "tuple[Tensor, int]":
    """The selection, and how many of it equal ``above``."""
    import numpy as np
    import torch

    # numpy compares several times faster than torch.
    score, eligible = scored.score.reshape(-1).numpy(), scored.eligible.reshape(-1).numpy()
    chosen, equals = score > cut.above, 0
    chosen &= eligible
    if cut.ties:
        equal = score == cut.above
        equal &= eligible
        equals = int(np.count_nonzero(equal))
        if equals > cut.ties:
            equal &= equal.cumsum() <= cut.ties
            equals = cut.ties
        chosen |= equal
    return torch.from_numpy(chosen).reshape(scored.score.shape), equals


class Selection(Mapping[str, "Tensor"]):
    """A selection for every tensor of some scores: bool, or soft in [0, 1]; made of its `Cut` when it is looked at."""

    def __init__(self, scores: Scores, chosen: "Mapping[str, Tensor | Cut]") -> None:
        self.scores, self.chosen = scores, chosen
        self._tally = Tally()
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> "Tensor":
        chosen = self.chosen[name]
        return chosen.take(self.scores[name]) if isinstance(chosen, Cut) else chosen

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def views(self) -> Views:
        """What the scores are computed from."""
        assert isinstance(self.scores, Computed)
        return self.scores.views

    def nothing(self, name: str) -> bool:
        """Whether it is known without looking at a score that nothing of a tensor is taken."""
        chosen = self.chosen[name]
        return chosen.above == math.inf if isinstance(chosen, Cut) else not anything(chosen.bool())

    def taker(self, name: str) -> "Callable[[Scored], Tensor]":
        """What says of each part of a tensor, flattened, what is taken of it; it has to be asked in their order."""
        chosen, done = self.chosen[name], 0

        def of_cut(part: Scored) -> "Tensor":
            nonlocal chosen
            assert isinstance(chosen, Cut)
            taken, equals = _take(chosen, part)
            chosen = Cut(chosen.above, chosen.ties - equals)
            return taken

        def of_tensor(part: Scored) -> "Tensor":
            nonlocal done
            assert not isinstance(chosen, Cut)
            done += part.score.numel()
            return chosen.reshape(-1)[done - part.score.numel() : done]

        return of_cut if isinstance(chosen, Cut) else of_tensor

    def seen(self, name: str) -> "Iterator[tuple[TensorView, Scored, Tensor]]":
        """The parts of a tensor as the scorer saw them, their scores, and what is taken of them.

        They are counted when they are first seen to the end: to compute them once more would cost more.
        """
        assert isinstance(self.scores, Computed)
        take, tally = self.taker(name), None
        if name not in self._tally.tensors:
            tally = Tally({name: [0, 0, 0]})  # a tensor may be empty
        for view, part in self.scores.seen(name):
            taken = take(part)
            if tally:
                tally.add(name, view, part, taken)
            yield view, part, taken
        with self._lock:
            if tally and name not in self._tally.tensors:  # somebody else may have been faster
                self._tally += tally

    def tally(self) -> "Tally":
        """Counts of all tensors; those that were not seen yet are seen now."""

        def see(name: str) -> None:
            deque(self.seen(name), maxlen=0)

        for _ in concurrently(see, [name for name in self if name not in self._tally.tensors], self.scores.threads):
            pass
        return self._tally


def select(scores: Scores, selector: Selector) -> Selection:
    """The selection, held to its contract.

    Raises:
        DefenseKitError: it misses a tensor, has another shape, leaves [0, 1] or takes a dimension that is not eligible.
    """
    import torch

    chosen = blame(selector, selector.select, scores)
    if chosen.keys() != scores.keys():
        odd = sorted(chosen.keys() ^ scores.keys())[0]
        raise fault(selector, f"must answer for the tensors it was given; they differ in {odd}")
    for name, taken in chosen.items():
        if isinstance(taken, Cut):
            continue
        scored = scores[name]
        if taken.shape != scored.score.shape:
            wanted = list(scored.score.shape)
            raise fault(selector, f"gave shape {list(taken.shape)} for {name}, expected {wanted}")
        if taken.dtype != torch.bool and not bool(((taken >= 0) & (taken <= 1)).all()):
            raise fault(selector, f"gave values outside [0, 1] for {name}")
        if bool((taken.bool() & ~scored.eligible).any()):
            raise fault(selector, f"took dimensions of {name} that are not eligible")
    return Selection(scores, chosen)


# -- in numbers --------------------------------------------------------------------------------------------------------

# Sign, exponent and 5 bits more: enough for a picture, and little to add up for every part.
BITS = 14
BINS = 1 << BITS


def _no_spread() -> "Tensor":
    import torch

    return torch.zeros(2 * BINS, dtype=torch.long)


@dataclass
class Tally:
    """Counts of dimensions. By tensor: all, eligible, selected. Of all tensors: how the scores of eligible and selected
    ones are spread over the upper `BITS` bits of float32; for each statistic, eligible and selected ones where it is
    0."""

    tensors: dict[str, list[int]] = field(default_factory=dict)
    spread: "Tensor" = field(default_factory=_no_spread)
    zero: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, view: TensorView, part: Scored, taken: "Tensor") -> None:
        """Count a part of a tensor, by numpy: torch takes several times as long, which is more than most scores do."""
        from numpy import count_nonzero as count

        chosen = taken.bool()
        self.spread += spread(part, chosen)
        eligible, selected = part.eligible.reshape(-1).numpy(), chosen.reshape(-1).numpy()
        _add(self.tensors, name, [chosen.numel(), int(count(eligible)), int(count(selected))])
        for statistic, values in view.statistics.items():
            nothing = values.reshape(-1).numpy() == 0
            nothing &= eligible
            _add(self.zero, statistic, [int(count(nothing)), int(count(nothing & selected))])

    def __iadd__(self, other: "Tally") -> "Tally":
        self.spread += other.spread
        for mine, more in ((self.tensors, other.tensors), (self.zero, other.zero)):
            for name, counts in more.items():
                _add(mine, name, counts)
        return self


def _add(counts: dict[str, list[int]], name: str, more: list[int]) -> None:
    counts[name] = [a + b for a, b in zip(counts.get(name, [0] * len(more)), more, strict=True)]


def spread(part: Scored, chosen: "Tensor") -> "Tensor":
    """Eligible dimensions by the upper `BITS` bits of their scores: those that are not chosen, then those that are."""
    import numpy as np
    import torch

    score, eligible, taken = (tensor.reshape(-1).numpy() for tensor in (part.score, part.eligible, chosen))
    bits = score.view(np.uint32) >> 32 - BITS
    bits |= np.left_shift(eligible.view(np.uint8) + taken.view(np.uint8), BITS, dtype=np.uint32)
    # torch counts 32 bits as they are, numpy makes 64 of them first.
    counts = torch.bincount(torch.from_numpy(bits.view(np.int32)), minlength=3 * BINS)[BINS:].view(2, BINS)
    counts[:, 0] += counts[:, BINS // 2]  # -0.0, and what these bits don't tell from it
    counts[:, BINS // 2] = 0
    return counts.view(-1)


def describe(selection: Selection) -> dict[str, Any]:
    """What was selected of a pair's computed scores: of all dimensions, of those in scope, of the eligible ones, by
    tensor."""
    pair, found = selection.views.pair, selection.tally()
    tensors = {name: found.tensors[name] for name in selection}
    scope, eligible, selected = (sum(counts) for counts in zip(*tensors.values(), strict=True))
    zero = {statistic: found.zero.get(statistic, [0, 0]) for statistic in selection.views.statistics}
    return {
        "dimensions": pair.dimensions(),
        "in_scope": scope,
        "eligible": eligible,
        "selected": selected,
        "eligible_where_zero": {statistic: counts[0] for statistic, counts in zero.items()},
        "selected_where_zero": {statistic: counts[1] for statistic, counts in zero.items()},
        "head": pair.head,
        "tensors": tensors,
        "scores": histogram(found.spread),
    }


def histogram(spread: "Tensor", bins: int = 120) -> dict[str, Any]:
    """How the scores of eligible dimensions are spread, and those of the selected ones among them.

    Args:
        spread: what `spread` counts, summed. The upper bits tell scores apart that differ by more than one part in 32;
            bounds and places are as exact as that.
        bins: how many.

    Returns:
        ``counts`` and ``selected``: dimensions per bin, between ``low`` and ``high``. Where no score is negative the
        bins are of equal width in log10 (``log``, and so are the bounds), and scores below 4e-40 are ``zero``.
    """
    import torch

    both = torch.stack([upper_in_order(half) for half in spread.view(2, BINS)])
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
    places = ((axis[filled] - low) * (bins / (high - low or 1.0))).long().clamp_(0, bins - 1)
    counts, selected = torch.zeros(2, bins, dtype=torch.long).index_add_(1, places, both[:, filled])
    return {
        "log": log,
        "low": low,
        "high": high,
        "zero": zero,
        "counts": counts.tolist(),
        "selected": selected.tolist(),
    }
