"""Adapters merged into their base, a tensor at a time: the base is never in memory as a whole.

LoRA is W + s BA, DoRA gives the rows of that sum learned lengths, IA3 scales rows or columns of W. This computes what
peft's `merge_and_unload` does, without that library. What can't be merged exactly is refused with a message.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from defensekit.models.adapters import FIRST, Adapter, is_adapter, short
from defensekit.models.checkpoint import (
    CAUSAL,
    CLASSIFIER,
    SINGLE,
    Checkpoint,
    copy_companions,
    dtype_of,
    identity_digests,
)
from defensekit.models.names import FLOATS, align, is_embedding
from defensekit.models.untrusted import ADAPTER_CONFIG, BITS, free_space
from defensekit.models.writer import write_streamed
from defensekit.utils.errors import UsageError, lacks_memory, listing
from defensekit.utils.files import atomic_folder, atomic_write, data_digest, file_digests, folder_lock
from defensekit.utils.logging import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

MOST_LABELS = 10_000
AT_ONCE = 1 << 22  # numbers of a matrix that are merged at once
_TASKS = {"SEQ_CLS": "AutoModelForSequenceClassification", "CAUSAL_LM": "AutoModelForCausalLM"}


@dataclass(frozen=True)
class Change:
    """A change of one parameter.

    Attributes:
        parts: the adapter's tensors (A, B, vector) by their names in its file.
        scale: s in W + s BA.
        transposed: whether the matrix is (in, out), as of an embedding or a Conv1D, instead of (out, in).
    """

    parts: dict[str, str]
    scale: float
    transposed: bool


def _fit(shapes: dict[str, tuple[int, ...]], matrix: tuple[int, ...]) -> bool:
    """Whether the parts of a change have the shapes that an (out, in) matrix needs."""
    a, b, vector = (shapes.get(part) for part in ("A", "B", "vector"))
    outputs, inputs = matrix
    if a is None or b is None:
        return vector in ((outputs, 1), (1, inputs))
    return len(a) == len(b) == 2 and (b[0], a[1]) == matrix and a[0] == b[1] and vector in (None, (outputs,))


@dataclass(frozen=True)
class Merged:
    """A base with an adapter merged into it, computed a tensor at a time.

    Raises (on first use):
        UsageError: the adapter does not fit the base, or can't be merged exactly.
    """

    base: Checkpoint
    adapter: Adapter

    def check(self) -> None:
        """Check now, instead of at first use, that the adapter fits the base.

        Raises:
            UsageError: the adapter does not fit the base, or can't be merged exactly.
        """
        _ = self.entries

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The merged model on the device "meta", where weights take no memory."""
        model = self._built()
        for name, value in model.named_parameters():
            if saved := self.adapter.whole.get(name):
                wanted, given = tuple(value.shape), self.adapter.tensors[saved].shape
                if len(given) != 2 or wanted != (model.config.num_labels, *given[1:]) or wanted == given:
                    continue
                if not 0 < given[0] <= MOST_LABELS:  # before a model of that size is built
                    raise self._misfit(f"{name} is a head for {given[0]:,} labels; expected 1 to {MOST_LABELS:,}")
                return self._built(num_labels=given[0])  # a head for other labels than the base's config has
        return model

    @property
    def task(self) -> str:
        """The task of the merged model."""
        return CLASSIFIER if self.adapter.config["task_type"] == "SEQ_CLS" else CAUSAL

    def _built(self, **labels: int) -> "PreTrainedModel":
        import torch
        import transformers

        task = self.adapter.config.get("task_type")
        if not isinstance(task, str) or task not in _TASKS:
            path = self.adapter.folder / ADAPTER_CONFIG
            raise UsageError(f"{path}: expected the `task_type` SEQ_CLS or CAUSAL_LM, got {short(task)}; {FIRST}")
        self.base.check()  # unsafe files are refused before transformers reads them
        try:
            with quiet(), torch.device("meta"):
                config = transformers.AutoConfig.from_pretrained(
                    self.base.folder, trust_remote_code=False, local_files_only=True, **labels
                )
                model: PreTrainedModel = getattr(transformers, _TASKS[task]).from_config(config)
                model.tie_weights()
        except Exception as error:
            if lacks_memory(error):
                raise
            raise UsageError(f"{self.base.folder}: {_TASKS[task]} makes no model of it ({short(error)})") from error
        model.config.architectures = [type(model).__name__]
        return model

    @cached_property
    def _tied(self) -> dict[str, list[str]]:
        """Every parameter and buffer once: the first of its names, mapped to all of them."""
        names: dict[int, list[str]] = {}
        for name, value in self.model.state_dict(keep_vars=True).items():
            names.setdefault(id(value), []).append(name)
        return {aliases[0]: aliases for aliases in names.values()}

    @cached_property
    def _in_base(self) -> dict[str, str]:
        """The model's names, mapped to those in the base's file."""
        ours, theirs = align(self._tied, self.base.tensors)
        return {own: theirs[common] for common, own in ours.items() if common in theirs}

    @cached_property
    def changes(self) -> dict[str, Change]:
        """The changes by parameter name."""
        changes = {f"{module}.weight": self._change(module) for module in self.adapter.modules}
        if self.adapter.kind == "IA3":  # what scales the outputs of a module scales its bias too
            for weight, change in list(changes.items()):
                bias = f"{weight.removesuffix('.weight')}.bias"
                if bias in self._tied and self.adapter.tensors[change.parts["vector"]].shape[1:] == (1,):
                    changes[bias] = change
        return changes

    def _check_changes(self) -> None:
        _ = self.changes

    def _change(self, module: str) -> Change:
        import torch
        from transformers.pytorch_utils import Conv1D

        name, parts = f"{module}.weight", self.adapter.modules[module]
        wanted, layer = self._shape(name), self.model.get_submodule(module)
        embedding = isinstance(layer, torch.nn.Embedding)
        transposed = embedding or isinstance(layer, Conv1D)
        if not transposed and not isinstance(layer, torch.nn.Linear):
            raise self._misfit(f"{module} is of the class {type(layer).__name__}, which is not merged here")
        if ignored := [
            saved for part, saved in parts.items() if part != "vector" and (".lora_embedding_" in saved) != embedding
        ]:
            raise self._misfit(f"{module} is of the class {type(layer).__name__}, and peft ignores {listing(ignored)}")
        shapes = {part: self.adapter.tensors[saved].shape for part, saved in sorted(parts.items())}
        if len(wanted) != 2 or not _fit(shapes, wanted[::-1] if transposed else wanted):
            given = ", ".join(f"{part} is {list(shape)}" for part, shape in shapes.items())
            raise self._misfit(f"{name}: {given}, the matrix {list(wanted)}")
        if embedding and self.adapter.kind == "IA3":
            raise self._misfit(f"{module} is of the class {type(layer).__name__}, which peft does not scale")
        return Change(parts, self.adapter.scale(module), transposed)

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter that the adapter changes."""
        for names in self._tied.values():
            if name in names and len(names) > 1:
                raise self._misfit(
                    f"{listing(names)} are one tensor, and {name}, merged, would change both; load the base with "
                    f"tie_word_embeddings=False, and {FIRST}"
                )
        if name not in self._tied:
            raise self._misfit(f"{type(self.model).__name__} has no {name}")
        return tuple(self.model.state_dict()[name].shape)

    def _misfit(self, what: str) -> UsageError:
        return UsageError(f"adapter {self.adapter.folder} and base {self.base.folder} don't fit each other: {what}")

    @cached_property
    def entries(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every tensor of the merged model: the dtypes are the base's."""
        dtypes = Counter(entry.dtype for entry in self.base.tensors.values() if entry.dtype in FLOATS)
        called = dict(self.model.named_parameters(remove_duplicate=False))
        for name, saved in self.adapter.whole.items():
            known, tokens = called.get(name), self.adapter.tensors[saved].shape[:1]
            if is_embedding(name) and known is not None and tokens != known.shape[:1]:
                raise self._misfit(
                    f"the adapter was trained with another vocabulary: its {name} has {listing(map(str, tokens))} "
                    f"tokens, the base's {len(known)}; {FIRST}"
                )
            if (given := self.adapter.tensors[saved].shape) != (wanted := self._shape(name)):
                raise self._misfit(f"{name}: adapter {list(given)}, model {list(wanted)}")
        entries, parameters = {}, dict(self.model.named_parameters())
        for name, value in self.model.state_dict().items():
            if own := self._in_base.get(name):
                entry = self.base.tensors[own]
                entries[name] = (entry.dtype, tuple(value.shape))
                if entry.shape != value.shape and name not in self.adapter.whole:
                    raise self._misfit(f"{name}: base {list(entry.shape)}, model {list(value.shape)}")
            elif name in self.adapter.whole:
                entries[name] = (dtypes.most_common(1)[0][0], tuple(value.shape))
            elif name in parameters:
                raise self._misfit(
                    f"{name} is in neither (a head that was drawn at random and not saved? weights that transformers "
                    "assembles when it loads them?)"
                )
        self._check_changes()
        modules = [name for name, _ in self.model.named_modules() if self.adapter.targets(name)]
        if self.adapter.drawn and (lacking := sorted(set(modules) - self.adapter.modules.keys())):
            raise self._misfit(f"the adapter has nothing for {listing(lacking, 3)}, and peft draws something at random")
        return entries

    def untrained(self) -> "dict[str, Tensor]":
        """The adapter's tensors before it was trained, as far as they are known, by their names in its file.

        By peft's defaults B was 0, and of an embedding A. The other matrix is returned as it is, since its random start
        is not known. Lengths of DoRA were the base's and factors of IA3 were 1. A whole tensor was the base's, where
        the base has one of that shape.
        """
        import torch

        tensors = {}
        for module, parts in self.adapter.modules.items():
            given = {part: self.adapter.tensor(name) for part, name in parts.items()}
            if self.adapter.kind == "IA3":
                tensors[parts["vector"]] = torch.ones_like(given["vector"])
                continue
            zero = "A" if ".lora_embedding_" in parts["A"] else "B"
            tensors |= {parts[part]: torch.zeros_like(given[part]) if part == zero else given[part] for part in "AB"}
            if "vector" in parts and f"{module}.weight" in self._in_base:
                weight = self.base.tensor(self._in_base[f"{module}.weight"]).float()
                lengths = weight.norm(dim=0 if self.changes[f"{module}.weight"].transposed else 1)
                tensors[parts["vector"]] = lengths.to(given["vector"].dtype)
        for name, saved in self.adapter.whole.items():
            if name in self._in_base and self.base.tensors[self._in_base[name]].shape == self._shape(name):
                tensors[saved] = self.base.tensor(self._in_base[name]).to(self.adapter.tensor(saved).dtype)
        return tensors

    def parts(self, name: str) -> "Iterator[Tensor]":
        """A tensor's values, in blocks of rows."""
        saved = self.adapter.whole.get(name)
        weight = self.base.tensor(self._in_base[name]) if saved is None else self.adapter.tensor(saved)
        weight = weight.to(dtype_of(self.entries[name][0])) if saved else weight
        if (change := self.changes.get(name)) is None:
            yield weight
            return
        step = max(AT_ONCE // max(weight[:1].numel(), 1), 1)
        blocks = [slice(start, start + step) for start in range(0, len(weight), step)]
        for part in (self._scaled if self.adapter.kind == "IA3" else self._added)(weight, change, blocks):
            yield part.to(weight.dtype)

    def _scaled(self, weight: "Tensor", change: Change, blocks: list[slice]) -> "Iterator[Tensor]":
        """Rows or columns times the factors of IA3."""
        factors = self.adapter.tensor(change.parts["vector"]).float()
        factors = factors.flatten() if weight.dim() == 1 else factors.T if change.transposed else factors
        factors = factors.expand_as(weight)
        for rows in blocks:
            yield weight[rows] * factors[rows]

    def _added(self, weight: "Tensor", change: Change, blocks: list[slice]) -> "Iterator[Tensor]":
        """W + s BA; for DoRA, with the learned length of each output's weights."""
        import torch

        a, b, *vector = (self.adapter.tensor(saved).float() for _, saved in sorted(change.parts.items()))

        def sums() -> "Iterator[Tensor]":
            for rows in blocks:
                added = ((b @ a[:, rows]).T if change.transposed else b[rows] @ a) * change.scale
                # peft adds in float32, and rounds what LoRA adds to embeddings before as well.
                rounded = ".lora_embedding_" in change.parts["A"] and not vector
                yield weight[rows] + (added.to(weight.dtype) if rounded else added)

        if not vector:
            yield from sums()
        elif change.transposed:  # an output is a column: its length needs all rows
            lengths = torch.stack([block.norm(dim=0) for block in sums()]).norm(dim=0)
            yield from (block * (vector[0] / lengths) for block in sums())
        else:
            for rows, block in zip(blocks, sums(), strict=True):
                yield block * (vector[0][rows] / block.norm(dim=1))[:, None]

    def write(self, target: Path) -> None:
        """Write config, tokenizer (the adapter's, if it has one) and streamed weights into a new folder.

        Raises:
            UsageError: the adapter does not fit the base, or the disk has too little space.
            DefenseKitError: a file could not be written.
        """
        entries = self.entries
        size = sum(prod(shape) * BITS[dtype] // 8 for dtype, shape in entries.values())
        free_space(target, size, "the merged model")
        with atomic_folder(target) as part:
            copy_companions(self.base.folder, part)
            copy_companions(self.adapter.folder, part)
            (part / ADAPTER_CONFIG).unlink()
            self.model.config.save_pretrained(part)
            write_streamed(part / SINGLE, entries, self.parts)


def merged(base: Path, suspect: Path, workspace: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """The folder of a whole model for a suspect: its own, or for an adapter that of the model merged with the base.

    Args:
        base: the folder of the base.
        suspect: the folder of a model or of an adapter.
        workspace: where merged models are cached.
        say: takes lines for the user.

    Raises:
        UsageError: the adapter does not fit the base, or can't be merged exactly.
    """
    if not is_adapter(suspect):
        return suspect
    model = Merged(Checkpoint(base), Adapter(suspect))
    model.check()  # before the base is digested, which takes long
    key = data_digest([model.base.digest(), identity_digests(suspect)])[:12]
    target = workspace / "merged" / f"{suspect.resolve().name}-{key}"
    say(f"adapter {suspect} (it names its base: {model.adapter.names_base}), merged into {base}")
    made = target.with_name(f"{target.name}.json")  # digests, beside it: they are none of the model's files
    with folder_lock(target, wait=True):
        if target.is_dir() and not _is_whole(target, made):
            say(f"{target} is not as it was written: merged anew")
            shutil.rmtree(target)
        if not target.is_dir():
            model.write(target)
            atomic_write(made, json.dumps(file_digests(target), indent=1).encode())
    return target


def _is_whole(folder: Path, made: Path) -> bool:
    """Whether a folder has the files that were written, and no other."""
    try:
        return bool(json.loads(made.read_bytes()) == file_digests(folder))
    except (OSError, ValueError, RecursionError):
        return False
