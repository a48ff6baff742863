"""Untrusted model folders, checked before anything is read or allocated.

The checks are of safetensors headers, JSON files, links and sizes.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defensekit.utils.errors import UsageError, listing
from defensekit.utils.files import read_regular

MIB = 1 << 20
# A header of 16 MiB describes 100,000 tensors; the largest index of a published model is under 10 MiB.
HEADER = 16 * MIB
CONFIG, INDEX, COMPANION = 4 * MIB, 32 * MIB, 256 * MIB
DIMENSIONS = 16
# Counts in a config that transformers believes before the files are read: layers, labels, heads, experts. Names vary
# among models (`n_layer`, `decoder_layers`, `num_local_experts`), so they are recognised by their ends.
COUNTED, COUNT = re.compile(r"(?:layer|label|head|expert|block|stage|group)s?$"), 10_000
# What transformers has in itself to compute attention and experts; other names are looked for in repositories.
OWN_CODE = ("eager", "sdpa", "grouped_mm", "batched_mm", None)
QUANTISED = ("quantization_config", "compression_config")
ADAPTER_CONFIG = "adapter_config.json"
NAMES_CODE = ("config.json", "tokenizer_config.json", "processor_config.json")  # where transformers looks for code
BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32},
    **{"F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64},
}


@dataclass(frozen=True)
class Entry:
    """A tensor's file, dtype, shape and position, from the file's header.

    ``start`` and ``stop`` are in bytes from the beginning of the file.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of a safetensors file by its name, in the order of their positions.

    Raises:
        UsageError: the file is damaged, or its header breaks the format: a duplicate name, a size that does not fit the
            shape, tensors that overlap, leave gaps or go beyond the end of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(path, f"a header of {length} bytes in a file of {size}")
        if length > HEADER:
            raise UsageError(f"{path}: refused a header of {length / MIB:.0f} MiB; at most {HEADER // MIB} are read")
        text = file.read(length)
    header = _parse(path, text)
    header.pop("__metadata__", None)
    data, entries = 8 + length, {}
    for name, entry in header.items():
        entries[name] = _entry(path, name, entry, data)
    end = data
    for name, tensor in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != end:
            raise _damaged(path, f"{_short(name)} begins at byte {tensor.start}, where {end} was expected")
        end = tensor.stop
    if end != size:
        raise _damaged(path, f"the tensors end at byte {end}, the file at {size}")
    return dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))


def _entry(path: Path, name: str, entry: Any, data: int) -> Entry:
    def wrong(what: str) -> UsageError:
        return _damaged(path, f"{_short(name)} has {what}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise wrong(f"the unknown dtype {_short(dtype)}")
    if not _numbers(shape) or len(shape) > DIMENSIONS:
        raise wrong(f"the shape {_short(shape)}; expected at most {DIMENSIONS} sizes")
    if not _numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong(f"the offsets {_short(offsets)}; expected two, in order")
    bits = BITS[dtype]
    for size in shape:
        bits *= size
    if bits != 8 * (offsets[1] - offsets[0]):
        raise wrong(f"{offsets[1] - offsets[0]} bytes for the shape {_short(shape)} in {dtype}")
    return Entry(path.name, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _numbers(value: Any) -> bool:
    # A size of 2^63 or more overflows in libraries, and many such sizes make the arithmetic here slow.
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in value)


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object from a file of at most ``limit`` bytes.

    Raises:
        UsageError: it is missing, larger, not JSON, not an object, or has a duplicate key.
    """
    bounded(path, limit)
    try:
        return _parse(path, read_regular(path, limit))
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there") from error


def bounded(path: Path, limit: int) -> None:
    """Refuse a file of more than ``limit`` bytes.

    Raises:
        UsageError: the file is larger.
    """
    if path.is_file() and (size := path.stat().st_size) > limit:
        raise UsageError(f"{path}: refused {size / MIB:.0f} MiB; at most {limit // MIB} are read")


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            seen: set[str] = set()
            duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise UsageError(f"{path}: the key {_short(duplicate)} is duplicated")
        return parsed

    try:
        data = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({_short(str(error))})") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected a JSON object")
    if b"\\ud" in text.lower():  # one half of a pair alone is no text, and fails wherever it is printed or written
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{path}: half a character (a lone surrogate)") from error
    return data


def entries(folder: Path) -> list[Path]:
    """What lies in a model's folder, and in its one subfolder that transformers reads, sorted."""
    return sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")])


def check_file(path: Path, folder: Path) -> None:
    """Check one file of a model's folder: no link that leaves it, no device or pipe, not oversized, no code named.

    A hub's cache keeps a snapshot's files in the folder ``blobs`` next to ``snapshots``; links to there are allowed.

    Raises:
        UsageError: a check failed; the message says what to do.
    """
    if path.is_symlink():
        root = folder.resolve()
        allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{path}: refused a circular link") from error
        if not any(target.is_relative_to(parent) for parent in allowed):
            raise UsageError(
                f"{path}: refused a link that leaves the folder (to {target}); put a copy of the file there instead"
            )
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"{path}: no regular file; refused")
    if path.suffix in (".json", ".txt", ".model", ".jinja"):
        bounded(path, COMPANION)
    if path.parent == folder and path.name in NAMES_CODE and path.is_file():
        _refuse_code(path)


def _refuse_code(path: Path) -> None:
    if _has_key(read_json(path, CONFIG), "auto_map"):
        code = sorted(file.name for file in path.parent.glob("*.py"))
        raise UsageError(
            f"{path}: `auto_map` names code that comes with the model"
            f"{f' ({listing(code, 3)})' if code else ''}; it is never run. Where transformers knows the model_type "
            "itself, remove `auto_map` from the file"
        )


def check_folder(folder: Path, adapter: bool = False) -> None:
    """Check every file of a model's folder, and that it holds no adapter unless that is expected.

    Raises:
        UsageError: a check failed; the message says what to do.
    """
    for path in entries(folder):
        check_file(path, folder)
    if (folder / ADAPTER_CONFIG).is_file() and not adapter:
        raise UsageError(
            f"{folder} holds a PEFT adapter, no whole model. As a suspect, `defensekit scan` and `defensekit purify` "
            "merge it into its base; for anything else merge it first: load it with "
            "peft.AutoPeftModelForSequenceClassification, call merge_and_unload(), and save_pretrained(FOLDER)"
        )


def _has_key(data: Any, wanted: str) -> bool:
    """Whether a key occurs in JSON data, at any depth."""
    within = [data]
    while within:  # no recursion: the depth is untrusted
        node = within.pop()
        if isinstance(node, dict) and wanted in node:
            return True
        within.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
    return False


def check_keys(path: Path, config: dict[str, Any]) -> None:
    """Refuse a config that names code elsewhere, quantised weights, or more layers, labels or heads than any model has.

    All of them are looked for at any depth.

    Raises:
        UsageError: names the key.
    """
    within: list[Any] = [config]
    while within:  # no recursion: the depth is untrusted
        node = within.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            name = str(key)
            if name.endswith("_implementation") or name.endswith("_implementation_internal"):
                for chosen in value.values() if isinstance(value, dict) else [value]:
                    if chosen not in OWN_CODE:
                        raise UsageError(
                            f"{path}: {_short(name)} is {_short(chosen)}, which may be code from elsewhere; it is "
                            "never run. Remove the key: the answers are the same without it"
                        )
            if name == "transformers_weights":
                raise UsageError(f"{path}: `{name}` names other weights than transformers' own; refused")
            if name in QUANTISED and value:
                method = value.get("quant_method") if isinstance(value, dict) else value
                raise UsageError(
                    f"{path}: the model is quantised (`{name}`: {_short(method)}), expected F64, F32, F16 or BF16 "
                    "weights; load it with the library that made it, dequantize() it, and save it again"
                )
            if name == "backbone" and isinstance(value, str):
                raise UsageError(f"{path}: `backbone` names another model, {_short(value)}, which is never fetched")
            if name in ("id2label", "label2id") and isinstance(value, dict) and len(value) > COUNT:
                raise UsageError(f"{path}: {name} has {len(value):,} labels; expected at most {COUNT:,}")
            if isinstance(value, int) and value > COUNT and COUNTED.search(str(key)):
                raise UsageError(f"{path}: {_short(key)} is {_short(value)}; expected at most {COUNT:,}")
            within.append(value)


def free_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin where the disk of a folder (which need not exist) has less than ``needed`` bytes free.

    Raises:
        UsageError: says how much is needed and how much is free.
    """
    import shutil

    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(existing).free) < needed:
        raise UsageError(f"{what} takes {needed / 1e9:.2f} GB, and {os.fspath(existing)} has {free / 1e9:.2f} GB free")


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} is damaged or not a safetensors file ({what})")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | list) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
