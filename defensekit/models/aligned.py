"""Base and suspect aligned for a comparison, where more than the weights may differ.

`defensekit.models.pair.Pair` is strict, since weights of one model are copied into the other. A comparison is not:
rows added by a longer vocabulary are left out, and so is a head of another shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from defensekit.models.checkpoint import Checkpoint
from defensekit.models.coverage import not_compared
from defensekit.models.names import BUFFERS, FLOATS, align
from defensekit.models.pair import refuse_swapped, rounded
from defensekit.models.sharing import drop_aliases
from defensekit.utils.errors import UsageError, listing

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 1 << 22  # values of a tensor that are converted to float32 at once


@dataclass(frozen=True)
class Aligned:
    """A base and a suspect of the same architecture; the size of the vocabulary and the head may differ.

    Raises (on first use):
        UsageError: they are of different architectures or sizes.
    """

    base: Checkpoint
    suspect: Checkpoint

    def check(self) -> None:
        """Check now, instead of at first use, that base and suspect can be compared.

        Raises:
            UsageError: they are of different architectures or sizes.
        """
        _ = self.compared

    @cached_property
    def _names(self) -> tuple[dict[str, str], dict[str, str]]:
        """(base, suspect): the common names, mapped to the names in the file."""
        in_base, in_suspect = align(_weights(self.base), _weights(self.suspect))
        drop_aliases(self.base, self.suspect, in_base, in_suspect)
        return in_base, in_suspect

    def not_compared(self) -> list[str]:
        """What the suspect's loaded model has beyond what is compared and its head, a sentence each."""
        return not_compared(self.base, self.suspect, [self.own_name(name) for name in self.added + self.reshaped])

    def _shapes(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        base, suspect = self._names
        return self.base.tensors[base[name]].shape, self.suspect.tensors[suspect[name]].shape

    @cached_property
    def compared(self) -> list[str]:
        """The tensors of both models that can be compared, sorted: of the same shape up to the vocabulary's size."""
        self._refuse_misfits()
        return sorted(name for name in self._names[0].keys() & self._names[1].keys() if self._fits(name))

    def _fits(self, name: str) -> bool:
        base, suspect = self._shapes(name)
        if base == suspect:
            return True
        if not (base and suspect):  # a head for other labels has another length, but it is a vector still
            raise UsageError(
                f"base {self.base.folder} and suspect {self.suspect.folder} don't fit each other: "
                f"{self.own_name(name)}: base {list(base)}, suspect {list(suspect)}"
            )
        tokens = (self.base.config.get("vocab_size"), self.suspect.config.get("vocab_size"))
        return base[1:] == suspect[1:] and (base[0], suspect[0]) == tokens

    @cached_property
    def reshaped(self) -> list[str]:
        """The tensors of both models whose shapes differ, sorted: a head for other labels."""
        return sorted((self._names[0].keys() & self._names[1].keys()) - set(self.compared))

    @cached_property
    def added(self) -> list[str]:
        """The suspect's tensors that the base does not have, sorted: its head."""
        return sorted(self._names[1].keys() - self._names[0].keys())

    def own_name(self, name: str) -> str:
        """What the suspect's file calls a tensor."""
        return self._names[1][name]

    def rows(self, name: str) -> tuple[int, int]:
        """The length of a tensor's first dimension in the base and in the suspect."""
        base, suspect = self._shapes(name)
        return (base[0], suspect[0]) if base else (1, 1)

    def blocks(self, name: str) -> "Iterator[tuple[int, Tensor, Tensor]]":
        """The rows that both models have of a tensor, in blocks: (first row, base, suspect), both in float32.

        The base is rounded to the suspect's dtype first, so that a weight that did not change is equal.
        """
        base = in_rows(self.base.tensor(self._names[0][name]))
        suspect = in_rows(self.suspect.tensor(self._names[1][name]))
        rows = min(len(base), len(suspect))
        step = max(AT_ONCE // max(suspect[0].numel(), 1), 1) if rows else 1
        for start in range(0, rows, step):
            ours, theirs = base[start : min(start + step, rows)], suspect[start : min(start + step, rows)]
            yield start, rounded(ours, suspect.dtype, name).float(), theirs.float()

    def _refuse_misfits(self) -> None:
        refuse_swapped(self.base, self.suspect)
        differences = []
        for key in ("model_type", "hidden_size", "num_hidden_layers"):
            ours, theirs = self.base.config.get(key), self.suspect.config.get(key)
            if ours != theirs:
                differences.append(f"{key}: base {ours}, suspect {theirs}")
        if not self._names[0].keys() & self._names[1].keys():
            differences.append("they have no tensor in common")
        if differences:
            raise UsageError(
                f"base {self.base.folder} and suspect {self.suspect.folder} don't fit each other: "
                + listing(differences)
            )


def in_rows(tensor: "Tensor") -> "Tensor":
    """A tensor with at least one dimension: a scalar becomes a row."""
    return tensor if tensor.dim() else tensor.reshape(1)


def _weights(checkpoint: Checkpoint) -> list[str]:
    return [name for name, entry in checkpoint.tensors.items() if not BUFFERS.search(name) and entry.dtype in FLOATS]
