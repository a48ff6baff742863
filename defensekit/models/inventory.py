"""What would be read of a stranger's model folder, and what is refused, file by file; no code of it is run.

The checks are those that a scan or a purification makes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Literal

from defensekit.models.adapters import WEIGHTS, Adapter, is_adapter
from defensekit.models.checkpoint import CLASSIFIER, IDENTITY, INDEX, PICKLES, SINGLE, Checkpoint
from defensekit.models.config import check_labels, label_names
from defensekit.models.coverage import not_loaded
from defensekit.models.loading import load_tokenizer
from defensekit.models.skeleton import skeleton
from defensekit.models.tokenizer_trial import check_tokenizer
from defensekit.models.untrusted import CONFIG, check_file, check_keys, entries, read_header, read_json
from defensekit.utils.errors import DefenseKitError, UsageError, listing
from defensekit.utils.files import nearest_path

State = Literal["read", "ignored", "refused"]


@dataclass(frozen=True)
class Item:
    """A file of a model's folder, or what the files are together: whether it is read, and what it is or why not."""

    name: str
    state: State
    why: str


def inventory(folder: Path) -> list[Item]:
    """Every file of a folder, and what the files are together; the latter is left out where a file is refused.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no model folder {folder}.{nearest_path(folder)}")
    used = _weight_files(folder)
    items = []
    for path in entries(folder):
        items.append(_checked(path.relative_to(folder).as_posix(), path, partial(_file, path, folder, used)))
    if any(item.state == "refused" for item in items):
        return items
    parts = _adapter(folder) if is_adapter(folder) else _model(folder)
    return [*items, *(_checked(f"({name})", folder, look) for name, look in parts)]


def _checked(name: str, path: Path, look: Callable[[], tuple[State, str]]) -> Item:
    try:
        return Item(name, *look())
    except DefenseKitError as error:
        return Item(name, "refused", str(error).removeprefix(f"{path}: "))


def _weight_files(folder: Path) -> set[str]:
    """The names of the files that hold the weights: all that may, where a file is refused that says which."""
    if is_adapter(folder):
        return {WEIGHTS}
    try:
        return {path.name for path in Checkpoint(folder).files}
    except UsageError:
        return {path.name for path in folder.glob("*.safetensors")}


def _file(path: Path, folder: Path, weights: set[str]) -> tuple[State, str]:
    """Whether a file is read, and what it is.

    Raises:
        UsageError: it is refused.
    """
    check_file(path, folder)
    if path.is_dir():
        return "ignored", "a folder"
    if path.suffix == ".py":
        return "ignored", "code, which is never run"
    if any(map(path.match, PICKLES)):
        return "ignored", "a pickle, which can run code when it is read"
    if path.name in weights:
        tensors = read_header(path)
        kinds = listing(sorted({entry.dtype for entry in tensors.values()}))
        return "read", f"{len(tensors):,} tensors, {sum(prod(e.shape) for e in tensors.values()):,} weights ({kinds})"
    if path.suffix == ".safetensors" or (path.name == INDEX and SINGLE in weights):
        return "ignored", f"the weights are in {listing(sorted(weights), 3)}"
    if path.name == "config.json":
        check_keys(path, read_json(path, CONFIG))
    if path.name == "tokenizer.json":
        check_tokenizer(folder)
        return "read", "a tokenizer, tried in a process of its own with bounds of time and memory"
    if any(map(path.match, IDENTITY)):
        return "read", "settings, words or templates, where transformers looks for a file of this name"
    return "ignored", "no part of a model"


def _model(folder: Path) -> Iterator[tuple[str, Callable[[], tuple[State, str]]]]:
    """What the files of a model are together, a part at a time."""
    checkpoint = Checkpoint(folder)

    def model() -> tuple[State, str]:
        checkpoint.check()
        architecture = skeleton(checkpoint)
        if reasons := not_loaded(checkpoint):
            raise UsageError("; ".join(reasons))
        checkpoint.check_finite()
        if architecture.task != CLASSIFIER:
            return "read", f"by its tensors: {architecture.task}"
        check_labels(checkpoint)
        return "read", f"by its tensors: {architecture.task}, with the labels {listing(label_names(checkpoint))}"

    yield "model", model
    yield "tokenizer", lambda: ("read", f"{len(load_tokenizer(folder)):,} tokens")


def _adapter(folder: Path) -> Iterator[tuple[str, Callable[[], tuple[State, str]]]]:
    """What the files of an adapter are together."""
    adapter = Adapter(folder)

    def changes() -> tuple[State, str]:
        of, whole = len(adapter.modules), len(adapter.whole)
        return "read", f"{adapter.kind} of {of:,} matrices and {whole:,} whole tensors, on the base that you name"

    yield "adapter", changes
