"""A row's folder: the entry, a result per cell, the answers behind it, and the digests of all.

Results and answers may be packed in one file, as they are written. A row may come from a stranger: names, sizes and
kinds of files are checked before anything is read, and nothing is run.
"""

import io
import lzma
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from defensekit.components import Predictions
from defensekit.leaderboard.answers import FOLDER, SUFFIX, answers_file, parse_answers
from defensekit.leaderboard.composition import AXIS
from defensekit.leaderboard.entries import Entry, load_entry
from defensekit.leaderboard.keys import Digest, Label, Line
from defensekit.leaderboard.tracks import Cell
from defensekit.recipe.keys import Keys
from defensekit.recipe.vocabulary import retuned
from defensekit.result.schema import Result, parse_result
from defensekit.utils.errors import DefenseKitError, UsageError, printable_name
from defensekit.utils.files import atomic_write, read_regular

RECORD, ENTRY, VERIFICATIONS, PACK = "row.json", "entry.yaml", "verifications", "contents.tar.xz"
FILES, BYTES, FILE_BYTES = 5_000, 200_000_000, 10_000_000  # the most that a row may have
_UNPACKING = 100_000_000  # bytes of memory that unpacking may take
_PARTS = ("cells", FOLDER)  # what is packed
_PACKED = rf"cells/[a-z0-9-]{{1,60}}\.json|{FOLDER}/[0-9a-f]{{64}}{re.escape(SUFFIX)}"
_KNOWN = (
    rf"row\.json|entry\.yaml|{re.escape(PACK)}|[A-Za-z0-9_][A-Za-z0-9_-]{{0,59}}\.py"
    rf"|{_PACKED}|verifications/[a-z0-9-]{{1,60}}\.json"
)


class RowRecord(Keys):
    """What `row.json` has: the track, and the digest of every file but itself and the verifications."""

    schema_version: Literal[1] = 1
    track: str
    track_digest: Digest
    entry: str
    files: dict[str, Digest]


class VerifiedCell(Keys):
    """A cell that was run again.

    ``differing`` is the share of test rows that some model answered otherwise, ``inputs`` what was not the same before
    anything was computed.
    """

    attack: Label
    seed: int
    differing: Annotated[dict[Literal["plain", "triggered"], Annotated[float, Field(ge=0, le=1)]], Field(min_length=2)]
    inputs: Annotated[list[str], Field(max_length=20)]


class Verification(Keys):
    """Some cells of a row, run again: by whom, on what, and whether everything came out within the tolerance."""

    schema_version: Literal[1] = 1
    row: Digest
    by: Line
    when: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    on: Annotated[dict[Line, Line], Field(max_length=20)]
    isolated: bool
    drawn_with: int
    cells: Annotated[list[VerifiedCell], Field(max_length=1_000)]
    same: bool


@dataclass(frozen=True)
class Row:
    """A row, read: ``digest`` is that of its record, however that is written, by which verifications know it.

    ``kept`` are the files of answers, by their path within it.
    """

    folder: Path
    record: RowRecord
    entry: Entry
    cells: Mapping[Cell, Result]
    kept: Mapping[str, bytes]
    digest: str

    @property
    def name(self) -> str:
        """The entry's."""
        return self.record.entry

    def model(self, result: Result) -> str:
        """The model of a cell that counts."""
        return counted(self.entry, result)

    def answers(self, result: Result, model: str, **context: Any) -> dict[str, Predictions]:
        """A model's answers, by the rows it was asked about; ``context`` is what `parse_answers` adds."""
        keys = result.models[model].predictions
        return {on: parse_answers(self.kept[answers_file(key)], **context) for on, key in keys.items()}

    def asked(self, on: str, result: Result, model: str, **context: Any) -> Predictions:
        """What a metric is measured from: a model's answers to its rows."""
        answers = self.answers(result, model, **context)
        return answers["triggered"].beside(answers["plain"]) if on == "both" else answers[on]

    @cached_property
    def verifications(self) -> list[Verification]:
        """Those of the row as it is now and as it was before, oldest first.

        Raises:
            DefenseKitError: one can't be read.
        """
        verifications = []
        for path in sorted((self.folder / VERIFICATIONS).glob("*.json")):
            try:
                verifications.append(Verification.model_validate_json(path.read_bytes()))
            except ValidationError as error:
                raise DefenseKitError(f"{path}: no verification ({_first(error)})") from error
        return sorted(verifications, key=lambda one: one.when)

    @property
    def verified(self) -> list[Verification]:
        """Those of the row as it is now."""
        return [one for one in self.verifications if one.row == self.digest]


KEPT = ("clean", "suspect")  # the models of a result that a row has, beside the one that counts


def models_of(entry: Entry, result: Result) -> list[str]:
    """The models of a result that a row has: with what the attacker makes of a few poisoned rows, if he gets these."""
    ended = counted(entry, result)
    rows = result.recipe.get("retuning", {}).get("rows", ())
    return [*KEPT, ended, *(retuned(name, count) for name in ("clean", ended) for count in rows)]


def counted(entry: Entry, result: Result) -> str:
    """The model that counts: what the defense left, or the base fine-tuned anew for a row of that."""
    return result.defended if entry.keys.model == "defended" else entry.keys.model


def read_row(folder: Path) -> Row:
    """Read a row; its digests are compared, its numbers are not.

    Raises:
        DefenseKitError: a file is missing, was changed, is of another kind, or is too many or too much.
    """
    files = {name: path.read_bytes() for name, path in _files(folder)}
    for needed in (RECORD, ENTRY):
        if needed not in files:
            raise UsageError(f"{folder} is no row: it has no {needed}")
    if PACK in files:
        for name, data in unpacked(files.pop(PACK), folder / PACK).items():
            if name in files:
                raise DefenseKitError(f"{folder}: {name} is there packed and unpacked")
            files[name] = data
    record = record_of(folder)
    listed = {name for name in files if name != RECORD and not name.startswith(f"{VERIFICATIONS}/")}
    if difference := sorted(listed ^ record.files.keys()):
        which = "is listed and not there" if difference[0] in record.files else "is there and not listed"
        raise DefenseKitError(f"{folder}: {difference[0]} {which}")
    for name, digest in record.files.items():
        if sha256(files[name]).hexdigest() != digest:
            raise DefenseKitError(f"{folder}: {name} is not what its digest in {RECORD} says")
    cells: dict[Cell, Result] = {}
    for name in sorted(name for name in files if name.startswith("cells/")):
        result = parse_result(files[name], folder / name)
        attack, seed = result.axes.get(AXIS), result.recipe.get("seed")
        if not isinstance(attack, str) or not isinstance(seed, int) or name != cell_file((attack, seed)):
            raise DefenseKitError(f"{folder}: {name} is of another cell (attack {attack!r}, seed {seed!r})")
        cells[attack, seed] = result
    entry = load_entry(folder / ENTRY)
    if entry.name != record.entry:
        raise DefenseKitError(f"{folder}: the entry is called {entry.name}, and the row {record.entry}")
    kept = {name: data for name, data in files.items() if name.startswith(f"{FOLDER}/")}
    return Row(folder, record, entry, cells, kept, sha256(written(record)).hexdigest())


def pack(folder: Path) -> None:
    """Put the results and answers in a row's folder into one file, a tenth of their size."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        for path in sorted(path for part in _PARTS for path in (folder / part).rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
    atomic_write(folder / PACK, lzma.compress(tarred.getvalue()))
    for part in _PARTS:
        shutil.rmtree(folder / part)


def unpacked(packed: bytes, path: Path) -> dict[str, bytes]:
    """What was packed, by its path within the row.

    Raises:
        DefenseKitError: it is damaged, or has anything but files of known names, or too much.
    """
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_UNPACKING)
    files: dict[str, bytes] = {}
    try:
        data = decompressor.decompress(packed, BYTES)
        for name, content in _members(data):
            if not re.fullmatch(_PACKED, name) or name in files:
                raise DefenseKitError(f"{path}: '{printable_name(name)}' has no place in it")
            files[name] = content
            if len(files) > FILES or len(content) > FILE_BYTES:
                raise DefenseKitError(f"{path} goes beyond {_limits()}")
    except (lzma.LZMAError, tarfile.TarError) as error:
        raise DefenseKitError(f"{path} can't be unpacked ({error})") from error
    if not decompressor.eof:
        raise DefenseKitError(f"{path} is cut short, or goes beyond {_limits()}")
    if decompressor.unused_data:
        raise DefenseKitError(f"{path} goes on after its end")
    return files


def _members(tarred: bytes) -> Iterator[tuple[str, bytes]]:
    """The plain files in a tar, one header after the other; `tarfile` itself follows what headers say anywhere.

    Raises:
        TarError: there is anything else.
    """
    at = 0
    while header := tarred[at : at + tarfile.BLOCKSIZE].strip(b"\0"):
        member = tarfile.TarInfo.frombuf(header.ljust(tarfile.BLOCKSIZE, b"\0"), "ascii", "replace")
        start = at + tarfile.BLOCKSIZE
        content = tarred[start : start + member.size] if member.size >= 0 else b""
        if member.type != tarfile.REGTYPE or len(content) != member.size:
            raise tarfile.ReadError(f"{printable_name(member.name)} is no plain file, or not whole")
        yield member.name, content
        at = start + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _limits() -> str:
    return f"what a row may have ({FILES:,} files, {BYTES:,} bytes in all, {FILE_BYTES:,} in one)"


def written(record: RowRecord) -> bytes:
    """A record, as its file has it."""
    sorted_files = record.model_copy(update={"files": dict(sorted(record.files.items()))})
    return sorted_files.model_dump_json(indent=1).encode() + b"\n"


def record_of(folder: Path) -> RowRecord:
    """A row's record, by itself.

    Raises:
        DefenseKitError: it can't be read.
    """
    path = folder / RECORD
    try:
        if path.is_symlink():
            raise UsageError(f"{path}: no plain file; refused")
        return RowRecord.model_validate_json(read_regular(path, FILE_BYTES))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise DefenseKitError(f"{path}: {_first(error)}") from error


def cell_file(cell: Cell) -> str:
    """The file of a cell's result."""
    return f"cells/{cell[0]}-{cell[1]}.json"


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file in a row's folder by its path within it; nothing but plain files of known names and sizes."""
    count = total = 0
    for top, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(top) / name
            about, inner = path.lstat(), path.relative_to(folder).as_posix()
            if stat.S_ISDIR(about.st_mode):
                continue
            if not stat.S_ISREG(about.st_mode):
                raise DefenseKitError(f"{folder}: {inner} is no plain file")
            if not re.fullmatch(_KNOWN, inner):
                raise DefenseKitError(f"{folder}: {inner} has no place in a row")
            count, total = count + 1, total + about.st_size
            if count > FILES or total > BYTES or about.st_size > FILE_BYTES:
                raise DefenseKitError(f"{folder}: {inner} goes beyond {_limits()}")
            yield inner, path


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{printable_name('.'.join(map(str, first['loc'])))}: {first['msg']}"
