"""Base and suspect aligned, tensor by tensor, from their files alone.

Files may name the same tensor differently: with or without a prefix (``bert.encoder...``), or with LayerNorm's old
names (``gamma``, ``beta``); some also hold buffers. A tensor of the pair has the suspect's name without the prefix,
with LayerNorm's present names.

Shapes may differ in two ways. The suspect's vocabulary may be longer: rows added to its embedding have no base value,
count as not changed and are kept. A head for other labels is kept from the suspect.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from defensekit.models.checkpoint import CAUSAL, CLASSIFIER, Checkpoint
from defensekit.models.config import label_count
from defensekit.models.coverage import check_coverage
from defensekit.models.names import BUFFERS, FLOATS, LAYER, align
from defensekit.models.sharing import drop_aliases, shared_names
from defensekit.models.skeleton import task_of
from defensekit.utils.errors import DefenseKitError, UsageError, listing
from defensekit.utils.html import html_table

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """A base and a suspect that was fine-tuned from it.

    Raises (on first use):
        UsageError: they don't fit each other; the message lists the differences.
    """

    base: Checkpoint
    suspect: Checkpoint
    partial: bool = False  # weights of an adapter alone: transformers makes no model of them

    def __repr__(self) -> str:
        return f"Pair(base={str(self.base.folder)!r}, suspect={str(self.suspect.folder)!r})"

    def _repr_html_(self) -> str:
        facts = [
            ("base", self.base.folder),
            ("suspect", self.suspect.folder),
            ("dimensions", f"{self.dimensions():,}"),
            ("tensors in scope", len(self.scope)),
            ("head, kept from the suspect", listing(self.head) or "none"),
            *([("rows added to the vocabulary, kept", self.added_rows)] if self.added_rows else []),
            ("in the base alone, not used", listing(self.left_out) or "nothing"),
        ]
        return html_table("pair", ["", ""], facts)

    def check(self) -> None:
        """Check now, instead of at first use, that base and suspect fit each other, and that nothing is left aside.

        Raises:
            UsageError: they don't; the message lists the differences.
        """
        _ = self.scope
        if not self.partial:
            check_coverage(self.base, self.suspect, [self._names[1][name] for name in self.head])

    @property
    def _names(self) -> tuple[dict[str, str], dict[str, str]]:
        """(base, suspect): the common names, mapped to the names in the file."""
        return self._aligned[:2]

    @cached_property
    def _aligned(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """The two, and the suspect's other names for tensors that its loaded model shares, mapped to common names."""
        base = [n for n, entry in self.base.tensors.items() if not BUFFERS.search(n) and entry.dtype in FLOATS]
        suspect = [n for n, entry in self.suspect.tensors.items() if not BUFFERS.search(n) and entry.dtype in FLOATS]
        in_base, in_suspect = align(base, suspect)
        aliases = {} if self.partial else drop_aliases(self.base, self.suspect, in_base, in_suspect)
        for name in in_base.keys() & in_suspect.keys():
            if self._is_head_for_other_labels(name, in_base[name], in_suspect[name]):
                del in_base[name]
        self._refuse_misfits(in_base, in_suspect)
        # Where both files have the prefix, it is still there: the first part of the name of every tensor in scope.
        first = {name.partition(".")[0] for name in in_base.keys() & in_suspect.keys()}
        if len(first) == 1:
            prefix = first.pop() + "."
            in_base = {name.removeprefix(prefix): own for name, own in in_base.items()}
            in_suspect = {name.removeprefix(prefix): own for name, own in in_suspect.items()}
            aliases = {own: name.removeprefix(prefix) for own, name in aliases.items()}
        return in_base, in_suspect, aliases

    def _is_head_for_other_labels(self, name: str, in_base: str, in_suspect: str) -> bool:
        """Whether a tensor of both has a row for each label and the numbers of labels differ."""
        ours, theirs = self.base.tensors[in_base].shape, self.suspect.tensors[in_suspect].shape
        if ours == theirs or ours[1:] != theirs[1:] or LAYER.match(name):
            return False
        return (*ours[:1], *theirs[:1]) == (label_count(self.base), label_count(self.suspect))

    def _is_extended(self, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
        """Whether a tensor has a row for each token and the suspect's vocabulary is longer."""
        tokens = (self.base.config.get("vocab_size"), self.suspect.config.get("vocab_size"))
        return ours[1:] == theirs[1:] and (*ours[:1], *theirs[:1]) == tokens and ours[:1] < theirs[:1]

    def _refuse_misfits(self, in_base: dict[str, str], in_suspect: dict[str, str]) -> None:
        refuse_swapped(self.base, self.suspect)
        differences = []
        for key in ("model_type", "hidden_size", "vocab_size", "num_hidden_layers"):
            ours, theirs = self.base.config.get(key), self.suspect.config.get(key)
            if key == "vocab_size" and isinstance(ours, int) and isinstance(theirs, int):
                if ours > theirs:
                    differences.append(
                        f"{key}: base {ours}, suspect {theirs}; a vocabulary may only have grown, and where the base's "
                        "is padded, the suspect's has to be as well"
                    )
            elif ours != theirs:
                differences.append(f"{key}: base {ours}, suspect {theirs}")
        common = in_base.keys() & in_suspect.keys()
        for name in sorted(common):
            ours, theirs = self.base.tensors[in_base[name]].shape, self.suspect.tensors[in_suspect[name]].shape
            if ours != theirs and not self._is_extended(ours, theirs):
                differences.append(f"{name}: base {list(ours)}, suspect {list(theirs)}")
        # A tensor without a layer number may be a head, in one file only; a layer has to be in both.
        shared_stems = {_stem(name) for name in common}
        for name in sorted(in_base.keys() ^ in_suspect.keys()):
            if LAYER.match(name) and _stem(name) in shared_stems:
                differences.append(f"{name}: only in the {'base' if name in in_base else 'suspect'}")
        if not common:
            differences.append("they have no tensor in common")
        if differences:
            raise UsageError(
                f"base {self.base.folder} and suspect {self.suspect.folder} don't fit each other:\n  "
                + "\n  ".join(differences[:20])
                + (f"\n  and {len(differences) - 20} more" if len(differences) > 20 else "")
            )

    @cached_property
    def scope(self) -> list[str]:
        """The tensors that exist in both files, sorted."""
        in_base, in_suspect = self._names
        return sorted(in_base.keys() & in_suspect.keys())

    @cached_property
    def head(self) -> list[str]:
        """The suspect's tensors that the base lacks or has for other labels, sorted: they are kept."""
        in_base, in_suspect = self._names
        return sorted(in_suspect.keys() - in_base.keys())

    @cached_property
    def left_out(self) -> list[str]:
        """The base's weights that the suspect does not have (the pretraining head), sorted."""
        in_base, in_suspect = self._names
        return sorted(in_base.keys() - in_suspect.keys())

    @cached_property
    def added_rows(self) -> int:
        """How many tokens were added to the base's vocabulary."""
        in_base, in_suspect = self._names
        shapes = ((self.base.tensors[in_base[n]].shape, self.suspect.tensors[in_suspect[n]].shape) for n in self.scope)
        return max((theirs[0] - ours[0] for ours, theirs in shapes if ours != theirs), default=0)

    @cached_property
    def by_file_name(self) -> dict[str, str]:
        """The suspect's names in the file, aliases too, mapped to the common names, for tensors in scope."""
        aliases = {own: name for own, name in self._aligned[2].items() if name in self.scope}
        return aliases | {self._names[1][name]: name for name in self.scope}

    @cached_property
    def head_size(self) -> int | None:
        """The width of an attention head by the suspect's config; None where the config does not say it."""
        config = self.suspect.config
        if isinstance(own := config.get("head_dim"), int):
            return own
        for width, heads in (("hidden_size", "num_attention_heads"), ("dim", "n_heads"), ("n_embd", "n_head")):
            if config.get(width) and config.get(heads):
                return int(config[width]) // int(config[heads])
        return None

    def dimensions(self, name: str | None = None) -> int:
        """The number of dimensions (scalar weights) of the suspect, head included, or of one tensor."""
        return sum(map(prod, map(self.shape, self._names[1] if name is None else [name])))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor in the suspect."""
        return self.suspect.tensors[self._names[1][name]].shape

    def stored(self, name: str) -> "tuple[Tensor, Tensor]":
        """One tensor in scope, (base, suspect), as in their files; the suspect's may have more rows."""
        in_base, in_suspect = self._names
        return self.base.tensor(in_base[name]), self.suspect.tensor(in_suspect[name])

    def block(self, name: str) -> "tuple[Tensor, Tensor]":
        """One tensor in scope, (base, suspect), both in the suspect's dtype: a weight that did not change is equal."""
        base, suspect = self.stored(name)
        return aligned_base(base, suspect, name), suspect

    def named_like_the_pair(self, names: Iterable[str]) -> dict[str, str]:
        """The names of a loaded model's parameters by the pair's names, for tensors in scope.

        Raises:
            UsageError: a tensor in scope is missing from them.
        """
        listed = list(names)
        shared = () if self.partial else shared_names(self.suspect)
        first = {alias: group[0] for group in shared for alias in group if group[0] in listed}
        loaded, in_file = align(dict.fromkeys([*listed, *first]), self._names[1].values())
        common = {own: name for name, own in in_file.items()}
        parameters = {name: loaded.get(common[self._names[1][name]]) for name in self.scope}
        parameters = {name: first.get(own or "", own) for name, own in parameters.items()}
        if missing := [name for name, own in parameters.items() if own is None]:
            raise UsageError(
                f"the loaded model has no parameter for {listing(missing, 3)}; where transformers puts weights "
                "together as it loads them (a mixture's experts), a model can be scanned, and reset without rows"
            )
        return {name: own for name, own in parameters.items() if own is not None}


def rounded(base: "Tensor", dtype: "torch.dtype", name: str) -> "Tensor":
    """The base's values in the suspect's dtype.

    Raises:
        DefenseKitError: they are larger than the dtype holds.
    """
    ours = base.to(dtype)
    if dtype != base.dtype and bool(ours.isinf().any()) and not bool(base.isinf().any()):
        raise DefenseKitError(
            f"{name}: the base has values up to {float(base.abs().max()):.3g}, which the suspect's {dtype} can't hold; "
            "convert the suspect to bfloat16 or float32"
        )
    return ours


def aligned_base(base: "Tensor", suspect: "Tensor", name: str) -> "Tensor":
    """The base in the suspect's dtype and shape; rows (or values, if flattened) that it lacks are the suspect's.

    A weight that did not change is equal, and so is one that has no base.

    Raises:
        DefenseKitError: as `rounded`.
    """
    import torch

    ours = rounded(base, suspect.dtype, name)
    return ours if ours.shape == suspect.shape else torch.cat([ours, suspect[len(ours) :]])


def refuse_swapped(base: Checkpoint, suspect: Checkpoint) -> None:
    """Refuse a base that is a classifier with a suspect that is none.

    Raises:
        UsageError: base and suspect seem to be swapped.
    """
    if base.claimed_task != CLASSIFIER:
        return
    task = task_of(suspect)
    if task == CAUSAL or task.endswith(("Model", "ForMaskedLM", "ForPreTraining")):
        raise UsageError(
            f"the base {base.folder} is a classifier, and the suspect {suspect.folder} has no head for labels "
            f"({task}): are base and suspect swapped?"
        )


def _stem(name: str) -> str:
    match = LAYER.match(name)
    return (match[1] or "") if match else name
