"""What scorers, selectors and weight steps are shown of a model's tensors, and how a selector answers."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from defensekit.models.pair import is_embedding
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.order_statistics import kth_largest
from defensekit.utils.parallel import concurrently

if TYPE_CHECKING:
    from torch import Tensor

# Dimensions scored at a time: few enough for a processor's cache, enough that threads seldom wait for each other to
# call torch (with half of it two threads are no faster than one).
PART = 1 << 18


@dataclass(frozen=True)
class TensorView:
    """One tensor, or a part of one, as scorers and weight steps see it: ``base``, ``suspect`` and statistics by name,
    all in float32."""

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
    """One tensor, or a part of one, as selectors see it: ``score`` in float32 and ``eligible`` (bool), both of its
    shape."""

    score: "Tensor"
    eligible: "Tensor"
    layer: str


class Scores(Mapping[str, Scored]):
    """Every tensor in scope, in the order of their names.

    ``head_size`` is how many neighbouring dimensions of an attention projection are one head, None where the model's
    config does not tell.
    """

    threads = 1
    _equal: tuple[float, dict[str, int]] = (math.nan, {})  # what the last cut counted on its way

    def __init__(self, tensors: Mapping[str, Scored], head_size: int | None = None) -> None:
        self._tensors = {name: tensors[name] for name in sorted(tensors)}
        self.head_size = head_size

    def __getitem__(self, name: str) -> Scored:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def layer(self, name: str) -> str:
        """The layer of a tensor."""
        return self._tensors[name].layer

    def embedding(self, name: str) -> bool:
        """Whether a tensor belongs to the embeddings: of tokens, positions or kinds of text, with their norms."""
        return is_embedding(name)

    def parts(self, name: str) -> Iterator[Scored]:
        """A tensor, flattened, in parts, in order."""
        scored = self[name]
        for part in slices(scored.score.numel()):
            yield Scored(scored.score.reshape(-1)[part], scored.eligible.reshape(-1)[part], scored.layer)

    def cutoff(self, names: Iterable[str], wanted: Callable[[int], int]) -> tuple[float, int]:
        """The k-th largest score of the eligible dimensions of some tensors, exactly, and how many of those equal to it
        belong to the k largest; ``wanted`` says k for the number of them. Where k is 0: (infinity, 0)."""

        def values(name: str) -> "Iterator[tuple[Tensor, Tensor]]":
            return ((scored.score, scored.eligible) for scored in self.parts(name))

        names = list(names)
        kth = kth_largest([partial(values, name) for name in names], wanted, self.threads, self._sample(names))
        self._equal = (kth.value, dict(zip(names, kth.equal or [], strict=False)))
        return kth.value, kth.ties

    def _sample(self, names: list[str]) -> "Tensor | None":
        """Some of the eligible scores, if they cost less than all."""
        return None

    def equal(self, names: Iterable[str], value: float) -> dict[str, int]:
        """How many eligible dimensions of each tensor have exactly that score."""

        def count(name: str) -> int:
            return sum(int((scored.eligible & (scored.score == value)).sum()) for scored in self.parts(name))

        names = list(names)
        last, known = self._equal
        if last == value and known.keys() >= set(names):
            return {name: known[name] for name in names}
        return dict(zip(names, concurrently(count, names, self.threads), strict=True))


def slices(count: int) -> Iterator[slice]:
    """Parts of so many dimensions, in order."""
    return (slice(start, min(start + PART, count)) for start in range(0, count, PART))


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
