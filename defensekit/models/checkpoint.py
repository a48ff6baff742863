"""Models on disk: safetensors only, checked before they are read; no pickle, no remote code."""

import hashlib
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.models.names import BUFFERS, FLOATS, WRAPPED, same_tensor
from defensekit.models.untrusted import (
    ADAPTER_CONFIG,
    CONFIG,
    Entry,
    check_folder,
    check_keys,
    read_header,
    read_json,
)
from defensekit.models.untrusted import INDEX as INDEX_LIMIT
from defensekit.utils.errors import DefenseKitError, UsageError, listing
from defensekit.utils.files import data_digest, file_digest, nearest_path
from defensekit.utils.parallel import concurrently

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CLASSIFIER, CAUSAL = "sequence classification", "causal language model"
# The files that define a model, and any other of these kinds: what a tokenizer reads differs by its class. Weights in
# other formats are not part of it.
NAMED_TEMPLATES = "additional_chat_templates/*.jinja"
IDENTITY = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", NAMED_TEMPLATES)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model's config and its weights as safetensors, one file or several with an index.

    Raises (on first use):
        UsageError: no such folder, no config, weights only as pickles or in two sets, a damaged file, an index or link
            that leaves the folder, an index that does not fit the files, code that the config names.
    """

    folder: Path

    def check(self) -> None:
        """Check everything now instead of at first use: the folder, the config and the headers of the weight files.

        Raises:
            UsageError: as described for the class.
        """
        _ = self.tensors

    def check_config(self) -> None:
        """Check the folder and the config now instead of at first use.

        Raises:
            UsageError: no such folder, no config, or one that must not be read.
        """
        _ = self.config

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        path = self.folder / "config.json"
        if not self.folder.is_dir():
            raise UsageError(f"there is no model folder {self.folder}.{nearest_path(self.folder)}")
        if not path.is_file() and not (self.folder / ADAPTER_CONFIG).is_file():  # reported by `check_folder`
            raise UsageError(f"{self.folder} holds no model: config.json is missing")
        check_folder(self.folder)
        config = read_json(path, CONFIG)
        check_keys(path, config)
        return config

    @cached_property
    def files(self) -> list[Path]:
        """The weight files, in the order of their names."""
        self.check_config()  # a missing folder is reported before missing weights
        if (self.folder / SINGLE).is_file():
            shards = sorted(path.name for path in self.folder.glob(SHARDS))
            if shards and (self.folder / INDEX).is_file():
                raise UsageError(
                    f"{self.folder} holds two sets of weights, {SINGLE} and {INDEX} with {listing(shards, 3)}. Remove "
                    f"the one that is not meant: {SINGLE}, or {INDEX}"
                )
            return [self.folder / SINGLE]
        if (self.folder / INDEX).is_file():
            names = sorted(set(self._weight_map.values()))
            for name in names:
                if Path(name).name != name or not name.endswith(".safetensors"):
                    raise UsageError(f"{self.folder / INDEX}: refused {name!r}; a weight file lies in the same folder")
                if not os.path.isfile(self.folder / name):  # unlike Path's, False of a name that no file can have
                    raise UsageError(f"{self.folder / INDEX} names {name}, which is not there")
            return [self.folder / name for name in names]
        if pickles := sorted(p.name for pattern in PICKLES for p in self.folder.glob(pattern)):
            raise UsageError(
                f"{self.folder} holds its weights only as a pickle ({listing(pickles)}), which can run code when it is "
                "read; refused. Where you trust it, convert it: load it with transformers and call "
                "model.save_pretrained(FOLDER), which writes safetensors"
            )
        raise UsageError(f"{self.folder} holds no weights: expected {SINGLE} or {INDEX}")

    @property
    def indexed(self) -> bool:
        """Whether the weight files are those of an index; one beside a single file is not read."""
        return self.files[0].name != SINGLE

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        weight_map = read_json(self.folder / INDEX, INDEX_LIMIT).get("weight_map")
        names = weight_map.values() if isinstance(weight_map, dict) else []
        if not isinstance(weight_map, dict) or not names or not all(isinstance(name, str) for name in names):
            raise UsageError(f"{self.folder / INDEX}: expected a `weight_map` from tensors to file names")
        return weight_map

    @cached_property
    def tensors(self) -> dict[str, Entry]:
        """Every tensor by its name, in the order of the files."""
        tensors: dict[str, Entry] = {}
        for path in self.files:
            entries = read_header(path)
            if duplicates := sorted(entries.keys() & tensors.keys()):
                raise UsageError(f"{path}: {listing(duplicates, 3)} is in {tensors[duplicates[0]].file} as well")
            tensors |= entries
        if self.indexed:
            files = {name: entry.file for name, entry in tensors.items()}
            if unexpected := sorted(
                name for name in files.keys() | self._weight_map.keys() if files.get(name) != self._weight_map.get(name)
            ):
                raise UsageError(f"{self.folder / INDEX} does not name the file of {listing(unexpected, 3)}")
        if unexpected := [
            f"{name} ({entry.dtype})"
            for name, entry in tensors.items()
            if entry.dtype not in FLOATS and not BUFFERS.search(name)
        ]:
            raise UsageError(
                f"{self.folder} is quantised or holds no weights, expected F64, F32, F16 or BF16: "
                f"{listing(unexpected, 3)}"
            )
        if wrapped := next((match[0] for match in map(WRAPPED.search, tensors) if match), None):
            raise UsageError(
                f"{self.folder}: names of tensors hold {wrapped!r}, of a wrapper around the model, and transformers "
                f"does not load them; load the weights, take {wrapped!r} out of every name, and save them again"
            )
        if twice := same_tensor(tensors):
            raise UsageError(
                f"{self.folder}: {listing(twice)} are one tensor to transformers, and which of them it takes is not "
                "known; refused. Remove the one that is not meant"
            )
        return tensors

    def tensor(self, name: str) -> "Tensor":
        """One tensor, in the dtype of the file, memory-mapped."""
        entry = self.tensors[name]
        path = self.folder / entry.file
        return _mapped(path, entry) if entry.dtype in FLOATS and entry.stop > entry.start else read_tensor(path, name)

    def check_finite(self, names: Sequence[str] | None = None) -> None:
        """Check that all weights, or those of some names, are finite.

        Raises:
            DefenseKitError: names the tensors that hold NaN or infinity.
        """
        import torch

        def finite(name: str) -> bool:
            # A finite sum has finite terms, and is many times cheaper than a test of each.
            parts = torch.split(self.tensor(name).reshape(-1), 1 << 18)
            return all(math.isfinite(float(p.float().sum())) or bool(p.isfinite().all()) for p in parts)

        names = list(self.tensors if names is None else names)
        good = concurrently(finite, names, torch.get_num_threads())
        if bad := [name for name, fine in zip(names, good, strict=True) if not fine]:
            files = listing(sorted({self.tensors[name].file for name in bad}), 3)
            raise DefenseKitError(f"{self.folder}: NaN or infinity in {listing(bad)} ({files})")

    def tensor_digests(self) -> dict[str, str]:
        """SHA-256 over every tensor's bytes in its file, by name."""
        digests = {}
        for name, entry in self.tensors.items():
            with (self.folder / entry.file).open("rb") as file:
                file.seek(entry.start)
                digest, left = hashlib.sha256(), entry.stop - entry.start
                while left:
                    digest.update(chunk := file.read(min(left, 1 << 24)))
                    left -= len(chunk)
            digests[name] = digest.hexdigest()
        return digests

    @property
    def claimed_task(self) -> str:
        """The task of the class that the config names: `CLASSIFIER`, `CAUSAL`, or else the name of that class.

        Whoever wrote the config chose it: `defensekit.models.skeleton.task_of` says what the tensors are.
        """
        names = self.config.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else "unknown"
        if name.endswith("ForSequenceClassification"):
            return CLASSIFIER
        masked = name.endswith("WithLMHeadModel")  # Flaubert's and XLM's name for it
        return CAUSAL if name.endswith(("ForCausalLM", "LMHeadModel")) and not masked else name

    def digest(self) -> str:
        """SHA-256 over config, tokenizer and weights."""
        self.check()
        return data_digest(identity_digests(self.folder))


def identity_digests(folder: Path) -> dict[str, str]:
    """The digests of the files that define the model or adapter in a folder: config, tokenizer and weights."""
    paths = sorted({path for pattern in IDENTITY for path in folder.glob(pattern) if path.is_file()})
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, RuntimeError) as error:  # torch refuses a tensor that lies across its dtype's borders
        raise UsageError(f"{path} is damaged or not a safetensors file ({error})") from error


def tensor_names(path: Path) -> frozenset[str]:
    """The names of a safetensors file's tensors.

    Raises:
        UsageError: the file is damaged.
    """
    return frozenset(read_header(path))


def _mapped(path: Path, entry: Entry) -> "Tensor":
    """A tensor of its own part of a file alone: safetensors maps all of it for each, which takes five times as long."""
    import torch

    first = entry.start - entry.start % mmap.ALLOCATIONGRANULARITY
    try:
        with path.open("rb") as file:
            part = mmap.mmap(file.fileno(), entry.stop - first, access=mmap.ACCESS_COPY, offset=first)
    except (OSError, ValueError) as error:  # it was there when its header was read
        raise UsageError(f"{path} is damaged or not a safetensors file ({error})") from error
    tensor = torch.frombuffer(part, dtype=dtype_of(entry.dtype), offset=entry.start - first)
    return tensor.reshape(entry.shape)


def read_tensor(path: Path, name: str) -> "Tensor":
    """One tensor of a safetensors file.

    Raises:
        UsageError: the file is damaged.
    """
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def dtype_of(name: str) -> "torch.dtype":
    """The torch dtype for a floating-point dtype of the safetensors format."""
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write one safetensors file.

    Raises:
        DefenseKitError: it could not be written, for example for lack of disk space.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except (OSError, SafetensorError, RuntimeError) as error:  # tensors that share memory are a RuntimeError
        raise DefenseKitError(f"{path.name} could not be written: {error}") from error


def copy_companions(source: Path, target: Path) -> None:
    """Copy config and tokenizer, but no weights of any format and no code."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.json", "*.txt", "*.model", "*.jinja", NAMED_TEMPLATES):
        for path in source.glob(pattern):
            if path.name != INDEX and path.is_file():
                copied = target / path.relative_to(source)
                copied.parent.mkdir(exist_ok=True)
                copied.write_bytes(path.read_bytes())
