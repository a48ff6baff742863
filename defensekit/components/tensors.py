"""Views of a model's tensors for scorers, selectors and weight steps, and the cut that a selector may return."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from defensekit.models.names import is_embedding
from defensekit.models.parts import Role, block_of, output_axis_of, role_of
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.order_statistics import kth_largest
from defensekit.utils.parallel import concurrently

if TYPE_CHECKING:
    from torch import Tensor

# Dimensions scored at a time: few enough for a processor's cache, enough that threads seldom wait for each other in
# torch (with half of it two threads are no faster than one).
PART = 1 << 18


@dataclass(frozen=True)
class TensorView:
    """One tensor of a pair, or a part of one, for scorers and weight steps.

    Its entries are called dimensions, as in the papers: a dimension is one scalar weight of the model.

    Attributes:
        name: the tensor's name.
        base: the base's values, in float32.
        suspect: the suspect's values, in float32, of the same shape.
        seed: the seed of all random numbers.
        statistics: the estimator's statistics by name, in float32, of the same shape.
    """

    name: str
    base: "Tensor"
    suspect: "Tensor"
    seed: int
    statistics: "Mapping[str, Tensor]" = field(default_factory=dict)
    _quantile: Callable[[str, float], float] | None = None

    @cached_property
    def drift(self) -> "Tensor":
        """The change by fine-tuning: suspect - base, in float32."""
        return self.suspect - self.base

    @property
    def role(self) -> Role:
        """What the tensor is part of, as its name says: attention, feed-forward, embedding, norm, head, or other."""
        return role_of(self.name)

    @property
    def block(self) -> int | None:
        """The number of the tensor's layer, counted from 0; None where it belongs to none."""
        return block_of(self.name)

    @property
    def output_axis(self) -> int:
        """The axis of a whole matrix along which its outputs lie: 0, but 1 of GPT-2's; of an embedding table 0."""
        return output_axis_of(self.name, self.suspect.shape)

    def __getitem__(self, statistic: str) -> "Tensor":
        if statistic not in self.statistics:
            raise DefenseKitError(f"the estimator gives no {statistic!r} for {self.name}")
        return self.statistics[statistic]

    def quantile(self, statistic: str, q: float) -> float:
        """A quantile of a statistic's positive values over all tensors in scope.

        Args:
            statistic: the name of the statistic.
            q: the quantile, in [0, 1].

        Returns:
            The quantile; 0 if no value is positive.

        Raises:
            DefenseKitError: there are no statistics.
        """
        if self._quantile is None:
            raise DefenseKitError(f"{self.name} has no statistics to take a quantile of")
        return self._quantile(statistic, q)


@dataclass(frozen=True)
class Scored:
    """The scores of one tensor, or of a part of one.

    Attributes:
        score: the score of every dimension, in float32, of the tensor's shape.
        eligible: which dimensions may be selected, bool, of the same shape.
        layer: the tensor's layer.
    """

    score: "Tensor"
    eligible: "Tensor"
    layer: str


class Scores(Mapping[str, Scored]):
    """The scores of every tensor in scope, by name, sorted.

    Attributes:
        head_size: how many neighbouring dimensions of an attention projection are one head; None where the model's
            config does not say it.
        threads: how many tensors are scored at a time.
    """

    threads = 1
    _equal: tuple[float, dict[str, int]] = (math.nan, {})  # counted by the last call of `cutoff`

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
        """The layer of a tensor.

        Args:
            name: the tensor's name.

        Returns:
            The layer's name, such as ``encoder.layer.3``.
        """
        return self._tensors[name].layer

    def role(self, name: str) -> Role:
        """What a tensor is part of, as its name says.

        Args:
            name: the tensor's name.

        Returns:
            ``attention``, ``feed-forward``, ``embedding``, ``norm``, ``head``, or ``other``.
        """
        return role_of(name)

    def block(self, name: str) -> int | None:
        """The number of a tensor's layer.

        Args:
            name: the tensor's name.

        Returns:
            The number, counted from 0; None where it belongs to no layer.
        """
        return block_of(name)

    def output_axis(self, name: str) -> int:
        """The axis of a matrix along which its outputs lie.

        Args:
            name: the tensor's name.

        Returns:
            0, but 1 of GPT-2's matrices; of an embedding table, whose rows are tokens, 0.
        """
        return output_axis_of(name, self._shape(name))

    def _shape(self, name: str) -> Sequence[int]:
        return self[name].score.shape

    def embedding(self, name: str) -> bool:
        """Whether a tensor belongs to the embeddings of tokens, positions or segments, norms included.

        Args:
            name: the tensor's name.

        Returns:
            True if it does.
        """
        return is_embedding(name)

    def parts(self, name: str) -> Iterator[Scored]:
        """The scores of a tensor, flattened and in parts.

        Args:
            name: the tensor's name.

        Yields:
            The parts, in order.
        """
        scored = self[name]
        for part in slices(scored.score.numel()):
            yield Scored(scored.score.reshape(-1)[part], scored.eligible.reshape(-1)[part], scored.layer)

    def cutoff(self, names: Iterable[str], wanted: Callable[[int], int]) -> tuple[float, int]:
        """The k-th largest score of the eligible dimensions of several tensors, exactly.

        Args:
            names: the tensors.
            wanted: gives k for the number of eligible dimensions.

        Returns:
            The score, and how many of the scores equal to it belong to the k largest; (infinity, 0) where k is 0.
        """

        def values(name: str) -> "Iterator[tuple[Tensor, Tensor]]":
            return ((scored.score, scored.eligible) for scored in self.parts(name))

        names = list(names)
        kth = kth_largest([partial(values, name) for name in names], wanted, self.threads, self._sample(names))
        self._equal = (kth.value, dict(zip(names, kth.equal or [], strict=False)))
        return kth.value, kth.ties

    def _sample(self, names: list[str]) -> "Tensor | None":
        """A sample of the eligible scores, if it costs less than all of them."""
        return None

    def equal(self, names: Iterable[str], value: float) -> dict[str, int]:
        """Count the eligible dimensions with exactly a given score.

        Args:
            names: the tensors.
            value: the score.

        Returns:
            The counts by tensor.
        """

        def count(name: str) -> int:
            return sum(int((scored.eligible & (scored.score == value)).sum()) for scored in self.parts(name))

        names = list(names)
        last, known = self._equal
        if last == value and known.keys() >= set(names):
            return {name: known[name] for name in names}
        return dict(zip(names, concurrently(count, names, self.threads), strict=True))


def slices(count: int) -> Iterator[slice]:
    """Slices of at most `PART` that cover ``count`` dimensions, in order."""
    return (slice(start, min(start + PART, count)) for start in range(0, count, PART))


@dataclass(frozen=True)
class Cut:
    """A selection of one tensor by score alone, which takes no memory.

    Attributes:
        above: eligible dimensions with a score above this are selected.
        ties: how many of the eligible dimensions with a score equal to ``above`` are selected, the first ones.
    """

    above: float
    ties: int = 0

    def take(self, scored: Scored) -> "Tensor":
        """Apply the cut.

        Args:
            scored: a tensor, or a part of one; ``ties`` is counted from its beginning.

        Returns:
            The selection, bool, of its shape.
        """
        return _take(self, scored)[0]


def _take(cut: Cut, scored: Scored) -> "tuple[Tensor, int]":
    """The selection, and how many of the selected scores equal ``above``."""
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
