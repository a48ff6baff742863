"""Selections: what a selector answers, checked against its contract, read in parts, and counted."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from defensekit.components import Selector, call_component, component_error
from defensekit.components.tensors import Cut, Scored, Scores, TensorView, _take
from defensekit.defense.histogram import SelectionCounts, histogram
from defensekit.defense.scoring import Computed, Views, any_true
from defensekit.utils.parallel import concurrently

if TYPE_CHECKING:
    from torch import Tensor


class TensorSelection(Mapping[str, "Tensor"]):
    """A selection for every tensor of some scores: bool, or soft in [0, 1]; computed from its `Cut` at each access."""

    def __init__(self, scores: Scores, chosen: "Mapping[str, Tensor | Cut]") -> None:
        self.scores, self.chosen = scores, chosen
        self._tally = SelectionCounts()
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
        return chosen.above == math.inf if isinstance(chosen, Cut) else not any_true(chosen.bool())

    def taker(self, name: str) -> "Callable[[Scored], Tensor]":
        """A function that says what is selected of each part of a flattened tensor; call it in the parts' order."""
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

    def selected_parts(self, name: str) -> "Iterator[tuple[TensorView, Scored, Tensor]]":
        """The parts of a tensor as the scorer saw them, their scores, and what is taken of them.

        They are counted when they are first read to the end: computing them again would cost more.
        """
        assert isinstance(self.scores, Computed)
        take, tally = self.taker(name), None
        if name not in self._tally.tensors:
            tally = SelectionCounts({name: [0, 0, 0]})  # a tensor may be empty
        for view, part in self.scores.scored_parts(name):
            taken = take(part)
            if tally:
                tally.add(name, view, part, taken)
            yield view, part, taken
        with self._lock:
            if tally and name not in self._tally.tensors:  # another thread may have been faster
                self._tally += tally

    def tally(self) -> "SelectionCounts":
        """Counts of all tensors; those that were not read yet are read now."""

        def see(name: str) -> None:
            deque(self.selected_parts(name), maxlen=0)

        for _ in concurrently(see, [name for name in self if name not in self._tally.tensors], self.scores.threads):
            pass
        return self._tally


def select(scores: Scores, selector: Selector) -> TensorSelection:
    """Select dimensions, and check that the selector kept its contract.

    Raises:
        DefenseKitError: the selection misses a tensor, has another shape, leaves [0, 1] or takes a dimension that is
            not eligible.
    """
    import torch

    chosen = call_component(selector, selector.select, scores)
    if chosen.keys() != scores.keys():
        differing = sorted(chosen.keys() ^ scores.keys())[0]
        raise component_error(selector, f"must answer for the tensors it was given; they differ in {differing}")
    for name, taken in chosen.items():
        if isinstance(taken, Cut):
            continue
        scored = scores[name]
        if taken.shape != scored.score.shape:
            wanted = list(scored.score.shape)
            raise component_error(selector, f"gave shape {list(taken.shape)} for {name}, expected {wanted}")
        if taken.dtype != torch.bool and not bool(((taken >= 0) & (taken <= 1)).all()):
            raise component_error(selector, f"gave values outside [0, 1] for {name}")
        if bool((taken.bool() & ~scored.eligible).any()):
            raise component_error(selector, f"took dimensions of {name} that are not eligible")
    return TensorSelection(scores, chosen)


# -- counts ------------------------------------------------------------------------------------------------------------


def summary(selection: TensorSelection) -> dict[str, Any]:
    """Count what was selected of a pair's scores.

    Returns:
        Counts of dimensions: all, in scope, eligible, selected; by tensor, and where a statistic is 0.
    """
    pair, counted = selection.views.pair, selection.tally()
    tensors = {name: counted.tensors[name] for name in selection}
    scope, eligible, selected = (sum(counts) for counts in zip(*tensors.values(), strict=True))
    zero = {statistic: counted.zero.get(statistic, [0, 0]) for statistic in selection.views.statistics}
    return {
        "dimensions": pair.dimensions(),
        "in_scope": scope,
        "eligible": eligible,
        "selected": selected,
        "eligible_where_zero": {statistic: counts[0] for statistic, counts in zero.items()},
        "selected_where_zero": {statistic: counts[1] for statistic, counts in zero.items()},
        "head": pair.head,
        "tensors": tensors,
        "scores": histogram(counted.histogram),
    }
