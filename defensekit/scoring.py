"""Scores over a pair: what a scorer is shown, what a selector is shown, and the exact cut between them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from defensekit.components import Scorer, Selector, fault
from defensekit.errors import DefenseKitError
from defensekit.pair import Pair, layer_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorView:
    """One tensor as scorers and weight steps see it: ``base`` and ``suspect`` in float32, statistics by name."""

    name: str
    base: "Tensor"
    suspect: "Tensor"
    seed: int
    statistics: "Mapping[str, Tensor]" = field(default_factory=dict)
    _quantile: Callable[[str, float], float] | None = None

    @cached_property
    def drift(self) -> "Tensor":
        """suspect - base."""
        return self.suspect - self.base

    def __getitem__(self, statistic: str) -> "Tensor":
        if statistic not in self.statistics:
            raise DefenseKitError(f"the estimator says nothing of {statistic!r} for {self.name}")
        return self.statistics[statistic]

    def quantile(self, statistic: str, q: float) -> float:
        """The q-quantile of a statistic's positive values over every tensor in scope (0 if none is positive)."""
        if self._quantile is None:
            raise DefenseKitError(f"{self.name} was given no statistics to take a quantile of")
        return self._quantile(statistic, q)


@dataclass(frozen=True)
class Scored:
    """One tensor as selectors see it: ``score`` in float32 and ``eligible`` (bool), both of the tensor's shape."""

    score: "Tensor"
    eligible: "Tensor"
    layer: str


class Scores(Mapping[str, Scored]):
    """Every tensor in scope, in the order of their names.

    ``head_size`` is how many neighbouring dimensions of an attention projection are one head, None where the model's
    config does not tell.
    """

    def __init__(self, tensors: Mapping[str, Scored], head_size: int | None = None) -> None:
        self._tensors = {name: tensors[name] for name in sorted(tensors)}
        self.head_size = head_size

    def __getitem__(self, name: str) -> Scored:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class Views:
    """The tensors of a pair with their statistics: ``statistics[statistic](name)`` reads one tensor, None where the
    statistic says nothing of it."""

    pair: Pair
    seed: int
    statistics: "Mapping[str, Callable[[str], Tensor | None]]" = field(default_factory=dict)
    _quantiles: dict[tuple[str, float], float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> TensorView:
        base, suspect = self.pair.block(name)
        read = {statistic: reader(name) for statistic, reader in self.statistics.items()}
        found = {statistic: values for statistic, values in read.items() if values is not None}
        return TensorView(name, base.float(), suspect.float(), self.seed, found, self._quantile)

    def _quantile(self, statistic: str, q: float) -> float:
        key = (statistic, q)
        if key not in self._quantiles:
            read = self.statistics[statistic]

            def positive() -> "Iterator[Tensor]":
                for name in self.pair.scope:
                    if (values := read(name)) is not None:
                        yield values[values > 0]

            count = sum(values.numel() for values in positive())
            self._quantiles[key] = cutoff(positive, count - int(q * (count - 1)))[0] if count else 0.0
        return self._quantiles[key]


def score(views: Views, scorer: Scorer) -> Scores:
    """Score every tensor in scope.

    Raises:
        DefenseKitError: a score has the wrong shape or is not finite where a dimension is eligible.
    """
    import torch

    scored: dict[str, Scored] = {}
    for name in views.pair.scope:
        view = views[name]
        shown = [view.base, view.suspect, view.drift, *view.statistics.values()]
        before = versions(shown)
        eligible = scorer.eligible(view)
        if eligible.shape != view.suspect.shape or eligible.dtype != torch.bool:
            raise fault(scorer, f"must say of every dimension of {name} whether it is eligible, as bool")
        result = scorer.score(view) if bool(eligible.any()) else torch.zeros_like(view.suspect)
        if versions(shown) != before:
            raise fault(scorer, f"wrote into the tensors it was shown of {name}, expected a new tensor of scores")
        if not isinstance(result, torch.Tensor) or result.shape != view.suspect.shape:
            got = f"shape {list(result.shape)}" if isinstance(result, torch.Tensor) else repr(result)
            raise fault(scorer, f"gave {got} for {name}, expected shape {list(view.suspect.shape)}")
        result = result.float()
        if not bool(torch.isfinite(result[eligible]).all()):
            raise fault(scorer, f"gave NaN or infinity for {name}, expected finite scores")
        scored[name] = Scored(result, eligible, layer_of(name))
    return Scores(scored, views.pair.head_size)


def select(scores: Scores, selector: Selector) -> "dict[str, Tensor]":
    """The selection, held to its contract.

    Raises:
        DefenseKitError: it misses a tensor, has another shape, leaves [0, 1] or takes a dimension that is not eligible.
    """
    import torch

    shown = [tensor for scored in scores.values() for tensor in (scored.score, scored.eligible)]
    before = versions(shown)
    selection = selector.select(scores)
    if versions(shown) != before:
        raise fault(selector, "wrote into the scores it was shown, expected new tensors")
    if selection.keys() != scores.keys():
        odd = sorted(selection.keys() ^ scores.keys())[0]
        raise fault(selector, f"must answer for the tensors it was given; they differ in {odd}")
    for name, chosen in selection.items():
        if chosen.shape != scores[name].score.shape:
            wanted = list(scores[name].score.shape)
            raise fault(selector, f"gave shape {list(chosen.shape)} for {name}, expected {wanted}")
        if chosen.dtype != torch.bool and not bool(((chosen >= 0) & (chosen <= 1)).all()):
            raise fault(selector, f"gave values outside [0, 1] for {name}")
        if bool((chosen.bool() & ~scores[name].eligible).any()):
            raise fault(selector, f"took dimensions of {name} that are not eligible")
    return selection


def versions(tensors: "Iterable[Tensor]") -> list[int]:
    """How often each tensor was written into, as torch counts it."""
    return [tensor._version for tensor in tensors]


def histogram(scores: Scores, selection: "Mapping[str, Tensor]", bins: int = 120) -> dict[str, Any]:
    """How the scores of eligible dimensions are spread, and those of the selected ones among them.

    Returns:
        ``counts`` and ``selected``: dimensions per bin, between ``low`` and ``high``. Where no score is negative the
        bins are of equal width in log10 (``log``, and so are the bounds), and scores of exactly 0 are ``zero``.
    """
    import torch

    eligible = [scored.score[scored.eligible] for scored in scores.values()]
    taken = [selection[name].bool()[scored.eligible] for name, scored in scores.items()]
    log = all(not bool((values < 0).any()) for values in eligible)
    zero = sum(int((values == 0).sum()) for values in eligible) if log else 0
    axis = [values[values > 0].log10() if log else values for values in eligible]
    taken = [chosen[values > 0] if log else chosen for chosen, values in zip(taken, eligible, strict=True)]
    filled = [values for values in axis if values.numel()]
    low, high = (float(min(v.min() for v in filled)), float(max(v.max() for v in filled))) if filled else (0.0, 0.0)
    counts, selected = torch.zeros(bins, dtype=torch.long), torch.zeros(bins, dtype=torch.long)
    for values, chosen in zip(axis, taken, strict=True):
        places = ((values.double() - low) * (bins / (high - low or 1.0))).long().clamp_(0, bins - 1)
        counts += torch.bincount(places, minlength=bins)
        selected += torch.bincount(places[chosen], minlength=bins)
    found = {"counts": counts.tolist(), "selected": selected.tolist()}
    return {"log": log, "low": low, "high": high, "zero": zero, **found}


def cutoff(tensors: "Callable[[], Iterable[Tensor]]", count: int) -> tuple[float, int]:
    """The ``count``-th largest value of float32 tensors, exactly, without ever holding them together.

    Two passes of a radix select over the values' bits: the first finds the upper 16, the second the lower 16.

    Args:
        tensors: gives the tensors anew for each pass.
        count: from 1 to the number of values.

    Returns:
        The value, and how many of those equal to it belong to the ``count`` largest.

    >>> import torch
    >>> cutoff(lambda: [torch.tensor([3.0, 1.0]), torch.tensor([3.0, 2.0])], 1)
    (3.0, 1)
    """
    import torch

    def keys(values: "Tensor") -> "Tensor":
        """Integers of the values' order, from 0; -0.0 is 0.0."""
        bits = (values.flatten() + 0.0).view(torch.int32).long()
        return torch.where(bits < 0, ~bits & 0xFFFFFFFF, bits | 0x80000000)

    def largest(histogram: "Tensor", wanted: int) -> tuple[int, int]:
        """The bin that holds the ``wanted``-th largest, and its place within the bin."""
        from_top = histogram.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, wanted))
        above = int(from_top[place - 1]) if place else 0
        return len(histogram) - 1 - place, wanted - above

    histogram = torch.zeros(1 << 16, dtype=torch.long)
    for values in tensors():
        histogram += torch.bincount(keys(values) >> 16, minlength=1 << 16)
    if not 1 <= count <= int(histogram.sum()):
        raise ValueError(f"count is {count}, expected 1 to {int(histogram.sum())}")
    upper, count = largest(histogram, count)
    histogram.zero_()
    for values in tensors():
        inside = keys(values)
        inside = inside[inside >> 16 == upper] & 0xFFFF
        histogram += torch.bincount(inside, minlength=1 << 16)
    lower, ties = largest(histogram, count)
    key = upper << 16 | lower
    bits = key & 0x7FFFFFFF if key & 0x80000000 else ~key & 0xFFFFFFFF
    bits -= (bits & 0x80000000) << 1  # as a signed number of 32 bits
    return float(torch.tensor([bits], dtype=torch.int32).view(torch.float32)), ties
