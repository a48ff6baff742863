"""Scores over a pair: what a scorer is shown, what a selector is shown, a part of a tensor at a time."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from defensekit.components import Scorer, blame, fault
from defensekit.errors import DefenseKitError
from defensekit.pair import Pair, beside, is_embedding, layer_of
from defensekit.ranking import concurrently, kth_largest

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
class Views:
    """The tensors of a pair with their statistics: ``statistics[statistic](name)`` reads one tensor, None where the
    statistic says nothing of it."""

    pair: Pair
    seed: int
    statistics: "Mapping[str, Callable[[str], Tensor | None]]" = field(default_factory=dict)
    _quantiles: dict[tuple[str, float], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getitem__(self, name: str) -> TensorView:
        return self._opened(name)(None)

    def parts(self, name: str) -> Iterator[TensorView]:
        """The tensor, flattened, in parts of at most `PART` dimensions."""
        view = self._opened(name)
        for part in slices(self.pair.dimensions(name)):
            yield view(part)

    @cached_property
    def sample(self) -> slice:
        """Some dimensions of a flattened tensor, evenly spread; of all tensors about 4 million at most."""
        return slice(0, None, max(257, self.pair.dimensions() >> 22 | 1))  # odd: not the same columns over and over

    def few(self, name: str) -> TensorView:
        """The sample of a tensor."""
        return self._opened(name)(self.sample)

    def _opened(self, name: str) -> Callable[[slice | None], TensorView]:
        """What makes the view of a part, or of the whole; the files are opened once."""
        base, suspect = self.pair.stored(name)
        read = {statistic: reader(name) for statistic, reader in self.statistics.items()}
        found = {statistic: values for statistic, values in read.items() if values is not None}

        def view(part: slice | None) -> TensorView:
            def cut(tensor: "Tensor") -> "Tensor":
                return tensor if part is None else tensor.reshape(-1)[part]

            return TensorView(
                name,
                beside(cut(base), cut(suspect)).float(),
                cut(suspect).float(),
                self.seed,
                {statistic: cut(values).float() for statistic, values in found.items()},
                self._quantile,
            )

        return view

    def _quantile(self, statistic: str, q: float) -> float:
        import torch

        read = self.statistics[statistic]

        def positive(name: str, some: Callable[[int], Iterable[slice]] = slices) -> "Iterator[tuple[Tensor, Tensor]]":
            if (values := read(name)) is not None:
                for part in some(values.numel()):
                    cut = values.reshape(-1)[part].float()
                    yield cut, torch.from_numpy(cut.numpy() > 0)  # numpy compares several times faster than torch

        with self._lock:
            if (statistic, q) not in self._quantiles:
                sources = [partial(positive, name) for name in self.pair.scope]
                few = [cut[more] for name in self.pair.scope for cut, more in positive(name, lambda _: [self.sample])]
                found = kth_largest(
                    sources,
                    lambda count: count - int(q * (count - 1)) if count else 0,
                    torch.get_num_threads(),
                    torch.cat(few) if few else None,
                ).value
                self._quantiles[statistic, q] = found if math.isfinite(found) else 0.0
            return self._quantiles[statistic, q]


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
        found = kth_largest([partial(values, name) for name in names], wanted, self.threads, self._sample(names))
        self._equal = (found.value, dict(zip(names, found.equal or [], strict=False)))
        return found.value, found.ties

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


class Computed(Scores):
    """The scores of a pair, computed whenever they are looked at, and never held: they cost less than their memory."""

    def __init__(self, views: Views, scorer: Scorer) -> None:
        import torch

        self.views, self.scorer = views, scorer
        self._names = views.pair.scope
        self.head_size = views.pair.head_size
        # What is scored whole takes memory for each thread; then the threads share a tensor instead.
        self.threads = torch.get_num_threads() if scorer.elementwise else 1

    def __getitem__(self, name: str) -> Scored:
        return self._score(self.views[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def layer(self, name: str) -> str:
        return layer_of(name)

    def parts(self, name: str) -> Iterator[Scored]:
        return (scored for _, scored in self.seen(name)) if self.scorer.elementwise else super().parts(name)

    def _sample(self, names: list[str]) -> "Tensor | None":
        import torch

        if not self.scorer.elementwise:
            return None
        few = [self._score(self.views.few(name)) for name in names]
        return torch.cat([scored.score[scored.eligible] for scored in few])

    def seen(self, name: str) -> Iterator[tuple[TensorView, Scored]]:
        """The parts of a tensor beside what the scorer saw of them."""
        if self.scorer.elementwise:
            for view in self.views.parts(name):
                yield view, self._score(view)
        else:
            yield from zip(self.views.parts(name), super().parts(name), strict=True)

    def _score(self, view: TensorView) -> Scored:
        import torch

        who, shown = self.scorer, [view.base, view.suspect, view.drift, *view.statistics.values()]
        before = versions(shown)
        eligible = blame(who, who.eligible, view)
        if eligible.shape != view.suspect.shape or eligible.dtype != torch.bool:
            raise fault(who, f"must say of every dimension of {view.name} whether it is eligible, as bool")
        result = blame(who, who.score, view) if anything(eligible) else torch.zeros_like(view.suspect)
        if versions(shown) != before:
            raise fault(who, f"wrote into the tensors it was shown of {view.name}, expected a new tensor of scores")
        if not isinstance(result, torch.Tensor) or result.shape != view.suspect.shape:
            got = f"shape {list(result.shape)}" if isinstance(result, torch.Tensor) else repr(result)
            raise fault(who, f"gave {got} for {view.name}, expected shape {list(view.suspect.shape)}")
        result = result.detach().float()
        # A finite sum has finite terms; it is many times cheaper than to look at each.
        if not math.isfinite(float(result.sum())) and not bool(torch.isfinite(result[eligible]).all()):
            raise fault(who, f"gave NaN or infinity for {view.name}, expected finite scores")
        return Scored(result, eligible, layer_of(view.name))


def anything(mask: "Tensor") -> bool:
    """Whether anything is True; the largest byte is found many times faster than by ``any``."""
    import torch

    return mask.numel() > 0 and bool(mask.contiguous().view(torch.uint8).max())


def versions(tensors: "Iterable[Tensor]") -> list[int]:
    """How often each tensor was written into, as torch counts it."""
    return [tensor._version for tensor in tensors]


def score(views: Views, scorer: Scorer) -> Computed:
    """The scores of every tensor in scope, computed when they are looked at.

    Raises:
        DefenseKitError: a score has the wrong shape or is not finite where a dimension is eligible: at once for the
            first tensor, later for others.
    """
    scores = Computed(views, scorer)
    for _ in scores.seen(views.pair.scope[0]):
        break
    return scores


def slices(count: int) -> Iterator[slice]:
    """Parts of so many dimensions, in order."""
    return (slice(start, min(start + PART, count)) for start in range(0, count, PART))
