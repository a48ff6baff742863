"""Weights streamed into files: a checkpoint's into another of the same layout, or into a new one."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.models.checkpoint import INDEX, Checkpoint
from defensekit.models.untrusted import BITS
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.parallel import concurrently

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 24


def rewrite(
    source: Checkpoint, target: Path, changed: "Callable[[str, Tensor], Iterator[Tensor] | None]", threads: int = 1
) -> None:
    """Write the weight files of a checkpoint into a folder, with changed values for selected tensors.

    Headers (with their metadata) and unchanged tensors are copied byte for byte.

    Args:
        source: the checkpoint.
        target: the folder.
        changed: takes a tensor's name in the file and its values and returns the new values in parts, flattened, in
            order, in the same dtype; None leaves the tensor unchanged.
        threads: how many tensors are written at a time.

    Raises:
        DefenseKitError: a file could not be written, for example for lack of disk space.
    """
    for path in source.files:
        begins = min((e.start for e in source.tensors.values() if e.file == path.name), default=path.stat().st_size)
        with _writing(path.name), path.open("rb") as old, (target / path.name).open("wb") as new:
            if hasattr(os, "posix_fallocate"):  # a full disk is noticed before the work
                os.posix_fallocate(new.fileno(), 0, path.stat().st_size)
            new.write(old.read(begins))

    def write(name: str) -> None:
        entry = source.tensors[name]
        with _writing(entry.file), (target / entry.file).open("r+b") as new:
            offset, parts = entry.start, changed(name, source.tensor(name))
            if parts is not None:
                for part in parts:
                    offset += _put(new.fileno(), _bytes(part), offset)
                return
            with (source.folder / entry.file).open("rb") as old:
                for at in range(entry.start, entry.stop, CHUNK):
                    _put(new.fileno(), os.pread(old.fileno(), min(CHUNK, entry.stop - at), at), at)

    # The largest first, so that threads finish at about the same time.
    by_size = sorted(source.tensors, key=lambda name: source.tensors[name].start - source.tensors[name].stop)
    for _ in concurrently(write, by_size, threads):
        pass
    if source.indexed:
        (target / INDEX).write_bytes((source.folder / INDEX).read_bytes())


def write_streamed(
    path: Path, entries: Mapping[str, tuple[str, tuple[int, ...]]], parts: "Callable[[str], Iterable[Tensor]]"
) -> None:
    """Write one safetensors file without holding it in memory.

    Args:
        path: the file.
        entries: dtype (of the safetensors format) and shape of every tensor, by name.
        parts: yields the values of a tensor in parts, flattened or not, in order, in its dtype.

    Raises:
        DefenseKitError: the file could not be written, for example for lack of disk space.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with _writing(path.name), path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
        offset = _put(file.fileno(), len(text).to_bytes(8, "little") + text, 0)
        for name in entries:
            for part in parts(name):
                offset += _put(file.fileno(), _bytes(part), offset)


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        raise DefenseKitError(f"{name} could not be written: {what}") from error


def _bytes(tensor: "Tensor") -> memoryview:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _put(file: int, content: bytes | memoryview, offset: int) -> int:
    """Write all of the content at an offset; returns the number of bytes."""
    view, done = memoryview(content), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)
    return done
