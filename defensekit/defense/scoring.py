"""Scores over a pair of models: what scorers and selectors see, a part of a tensor at a time."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from defensekit.components import Scorer, call_component, component_error
from defensekit.components.tensors import Scored, Scores, TensorView, slices
from defensekit.models.names import layer_of
from defensekit.models.pair import Pair, aligned_base
from defensekit.utils.order_statistics import kth_largest
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Views:
    """The tensors of a pair with their statistics.

    ``statistics[statistic](name)`` reads one tensor; None where the statistic does not cover it.
    """

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
        return slice(0, None, max(257, self.pair.dimensions() >> 22 | 1))  # an odd step, or columns would repeat

    def sampled(self, name: str) -> TensorView:
        """The sample of a tensor."""
        return self._opened(name)(self.sample)

    def _opened(self, name: str) -> Callable[[slice | None], TensorView]:
        """What makes the view of a part, or of the whole; the files are opened once."""
        base, suspect = self.pair.stored(name)
        read = {statistic: reader(name) for statistic, reader in self.statistics.items()}
        present = {statistic: values for statistic, values in read.items() if values is not None}

        def view(part: slice | None) -> TensorView:
            def cut(tensor: "Tensor") -> "Tensor":
                return tensor if part is None else tensor.reshape(-1)[part]

            return TensorView(
                name,
                aligned_base(cut(base), cut(suspect), name).float(),
                cut(suspect).float(),
                self.seed,
                {statistic: cut(values).float() for statistic, values in present.items()},
                self._quantile,
            )

        return view

    def _quantile(self, statistic: str, q: float) -> float:
        import torch

        read = self.statistics[statistic]

        def positive(name: str, cuts: Callable[[int], Iterable[slice]] = slices) -> "Iterator[tuple[Tensor, Tensor]]":
            if (values := read(name)) is not None:
                for part in cuts(values.numel()):
                    cut = values.reshape(-1)[part].float()
                    yield cut, torch.from_numpy(cut.numpy() > 0)  # numpy compares several times faster than torch

        with self._lock:
            if (statistic, q) not in self._quantiles:
                sources = [partial(positive, name) for name in self.pair.scope]
                sampled = [
                    cut[more] for name in self.pair.scope for cut, more in positive(name, lambda _: [self.sample])
                ]
                quantile = kth_largest(
                    sources,
                    lambda count: count - int(q * (count - 1)) if count else 0,
                    torch.get_num_threads(),
                    torch.cat(sampled) if sampled else None,
                ).value
                self._quantiles[statistic, q] = quantile if math.isfinite(quantile) else 0.0
            return self._quantiles[statistic, q]


class Computed(Scores):
    """The scores of a pair, computed at each access and never kept: computing costs less than their memory."""

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
        """The layer that a tensor belongs to."""
        return layer_of(name)

    def _shape(self, name: str) -> Sequence[int]:
        return self.views.pair.shape(name)

    def parts(self, name: str) -> Iterator[Scored]:
        """The scores of a tensor, flattened, in parts."""
        return (scored for _, scored in self.scored_parts(name)) if self.scorer.elementwise else super().parts(name)

    def _sample(self, names: list[str]) -> "Tensor | None":
        import torch

        if not self.scorer.elementwise:
            return None
        sampled = [self._score(self.views.sampled(name)) for name in names]
        return torch.cat([scored.score[scored.eligible] for scored in sampled])

    def scored_parts(self, name: str) -> Iterator[tuple[TensorView, Scored]]:
        """The parts of a tensor as the scorer sees them, and their scores."""
        if self.scorer.elementwise:
            for view in self.views.parts(name):
                yield view, self._score(view)
        else:
            yield from zip(self.views.parts(name), super().parts(name), strict=True)

    def _score(self, view: TensorView) -> Scored:
        import torch

        who, shown = self.scorer, [view.base, view.suspect, view.drift, *view.statistics.values()]
        before = versions(shown)
        eligible = call_component(who, who.eligible, view)
        if eligible.shape != view.suspect.shape or eligible.dtype != torch.bool:
            raise component_error(who, f"must say of every dimension of {view.name} whether it is eligible, as bool")
        result = call_component(who, who.score, view) if any_true(eligible) else torch.zeros_like(view.suspect)
        if versions(shown) != before:
            raise component_error(
                who, f"wrote into the tensors that it was given of {view.name}, expected a new tensor of scores"
            )
        if not isinstance(result, torch.Tensor) or result.shape != view.suspect.shape:
            got = f"shape {list(result.shape)}" if isinstance(result, torch.Tensor) else repr(result)
            raise component_error(who, f"gave {got} for {view.name}, expected shape {list(view.suspect.shape)}")
        result = result.detach().float()
        # A finite sum has finite terms; it is many times cheaper than to look at each.
        if not math.isfinite(float(result.sum())) and not bool(torch.isfinite(result[eligible]).all()):
            raise component_error(who, f"gave NaN or infinity for {view.name}, expected finite scores")
        return Scored(result, eligible, layer_of(view.name))


def any_true(mask: "Tensor") -> bool:
    """Whether anything is True; taking the largest byte is many times faster than ``any``."""
    import torch

    return mask.numel() > 0 and bool(mask.contiguous().view(torch.uint8).max())


def versions(tensors: "Iterable[Tensor]") -> list[int]:
    """How often each tensor was written into, as torch counts it."""
    return [tensor._version for tensor in tensors]


def score(views: Views, scorer: Scorer) -> Computed:
    """The scores of every tensor in scope, computed at each access.

    Raises:
        DefenseKitError: a score has the wrong shape or is not finite where a dimension is eligible: at once for the
            first tensor, later for others.
    """
    scores = Computed(views, scorer)
    for _ in scores.scored_parts(views.pair.scope[0]):
        break
    return scores


def score_pair(
    pair: Pair, scorer: Scorer, statistics: "Mapping[str, Callable[[str], Tensor | None]]", seed: int
) -> Computed:
    """The scores of a pair, as the stage with a seed computes them.

    Args:
        pair: base and suspect.
        scorer: scores each dimension.
        statistics: readers of the statistics, as `Views` takes them.
        seed: the stage's seed, `Seeds.purify`.

    Returns:
        The scores, computed at each access.

    Raises:
        DefenseKitError: as `score`.
    """
    return score(Views(pair, derive_seed(seed, "score"), statistics), scorer)
