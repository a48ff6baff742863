"""Tables in files: CSV, TSV, JSON, JSONL and Parquet, bounded and read row by row."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from defensekit.host.parquet_trial import AT_ONCE
from defensekit.utils.bounded import refusal
from defensekit.utils.errors import UsageError, listing, nearest, printable_name

# Of a table: characters of a cell and of a line, columns, rows, bytes of a file. Data sets of sentences stay far below.
CELL, LINE, COLUMNS, ROWS, BYTES = 1_000_000, 16_000_000, 1_000, 5_000_000, 2_000_000_000
SECONDS, GIB = 60, 4  # of processor time and memory, to decode a Parquet file
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


class Record(NamedTuple):
    """A row of a table and its location, for messages.

    Attributes:
        where: file and line.
        values: the cells by column.
    """

    where: str
    values: dict[str, Any]

    def cell(self, column: str) -> str:
        """A cell as text, without surrounding blanks.

        Args:
            column: the name of the column.

        Returns:
            The text; empty for a missing value.

        Raises:
            UsageError: there is no such column.
        """
        if column not in self.values:
            columns = [str(name) for name in self.values]
            raise UsageError(
                f"{self.where}: there is no column {column!r}.{nearest(column, columns)} "
                f"(columns: {listing(columns)}; say which of them are the `text`, the `pair` and the `label`: by these "
                "keys in a recipe, by `--set data.label=COLUMN`, or, of a scan, by `--label COLUMN`)"
            )
        value = self.values[column]
        if value is None or value != value:  # NaN is how pandas writes a missing value
            return ""
        if isinstance(value, float) and value.is_integer():  # and 1.0 an integer beside missing ones
            value = int(value)
        if not isinstance(value, str | int | float | Decimal):
            kind = type(value).__name__
            raise UsageError(f"{self.where}: the column {column!r} holds a {kind}; expected text or a number")
        text = str(value).strip()
        if len(text) > CELL:
            raise UsageError(f"{self.where}: {len(text):,} characters in the column {column!r}; at most {CELL:,}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{self.where}: the column {column!r} holds half a character (a lone surrogate)"
            ) from error
        return text

    def labels(self, column: str) -> "str | tuple[str, ...]":
        """A cell with a label, or with any number of them: a list, or in a text a JSON array.

        Args:
            column: the name of the column.

        Returns:
            The label as `cell` gives it; of a list the labels, each once.

        Raises:
            UsageError: there is no such column, or a label of a list is missing, or stands there twice.
        """
        value = self.values.get(column)
        if isinstance(value, str) and value.lstrip().startswith("["):
            with suppress(ValueError, RecursionError):  # else it is a label like any other
                value = json.loads(value[: CELL + 1])
        if not isinstance(value, list):
            return self.cell(column)
        names = tuple(Record(self.where, {column: one}).cell(column) for one in value)
        if "" in names or len({*names}) < len(names):
            what = "names a label twice" if "" not in names else "holds an empty label"
            raise UsageError(f"{self.where}: the list in the column {column!r} {what}")
        return names


def read_table(path: Path) -> Iterator[Record]:
    """Read a CSV, TSV, JSON, JSONL or Parquet file.

    Args:
        path: the file; its suffix gives the format. Column names are stripped of blanks.

    Yields:
        The rows, with their location; `Record.cell` gives a cell as text without blanks.

    Raises:
        UsageError: the file does not have the format of its suffix; the message has the file and the line.
    """
    readers = {".csv": _csv, ".tsv": _tsv, ".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix)
    if reader is None:
        raise UsageError(f"{path} is none of {listing(SUFFIXES)}")
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if (size := path.stat().st_size) > BYTES:
        raise UsageError(f"{path}: refused {size:,} bytes; at most {BYTES:,} are read")
    try:
        for count, record in enumerate(reader(path)):
            if count == ROWS:
                raise UsageError(f"{record.where}: more than {ROWS:,} rows; refused")
            yield record
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_lines(path, file), strict=True)
        try:
            yield from _with_header(path, ((reader.line_num, cells) for cells in reader))
        except csv.Error as error:
            raise UsageError(f"{path}, line {reader.line_num}: {error}") from error


def _tsv(path: Path) -> Iterator[Record]:
    # Cells are read literally: quotation marks have no meaning.
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        lines = ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(_lines(path, file), 1))
        yield from _with_header(path, lines)


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file, each of bounded length."""
    number = 0
    while line := file.readline(LINE + 1):
        number += 1
        if len(line) > LINE:
            raise UsageError(f"{path}, line {number}: more than {LINE:,} characters; refused")
        yield line


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Refuse more columns than any table has, and one name for two."""
    if len(names) > COLUMNS:
        raise UsageError(f"{path}: {len(names):,} columns; at most {COLUMNS:,}")
    _check_unique(f"{path}, line 1", names)


def _check_unique(where: str, names: Sequence[str]) -> None:
    """Refuse one name for two columns: one of them would be lost."""
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"{where}: the column {printable_name(min(duplicates))!r} is duplicated")


class _Repeating(dict[str, Any]):
    """An object of a JSON text with a key that stands there twice, which a dict would take the last of."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        values = _Repeating(values)
        values.key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return values


def _repeated(value: Any) -> str | None:
    """A key that occurs twice in one object, anywhere in a value."""
    within = [value]
    while within:
        one = within.pop()
        if isinstance(one, _Repeating):
            return one.key
        within += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return None


def _json_row(where: str, values: Any) -> Record:
    """A row from what a JSON text holds for it."""
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected a JSON object, got {type(values).__name__}")
    if (twice := _repeated(values)) is not None:
        raise UsageError(f"{where}: the key {printable_name(twice)!r} is duplicated")
    names = [name.strip() for name in values]
    _check_unique(where, names)
    return Record(where, dict(zip(names, values.values(), strict=True)))


def _with_header(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Iterator[Record]:
    _, header = next(lines, (1, []))
    names = [name.strip() for name in header]
    if not any(names):
        raise UsageError(f"{path}: the file is empty; expected a header line with the names of the columns")
    _check_columns(path, names)
    for number, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise UsageError(f"{path}, line {number}: {len(cells)} cells, but the header names {len(names)} columns")
        yield Record(f"{path}, line {number}", dict(zip(names, cells, strict=True)))


def _json(path: Path) -> Iterator[Record]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise UsageError(f"{path}: expected a JSON array of objects, got {type(rows).__name__}")
    for number, values in enumerate(rows):
        yield _json_row(f"{path}, row {number}", values)


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path}, line {number}: not JSON ({error})") from error
            yield _json_row(f"{path}, line {number}", values)


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _decoded(path, file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a Parquet file ({(str(error).splitlines() or [''])[0]})") from error


def _decoded(path: Path, file: Any) -> Iterator[Record]:
    """The rows of an open Parquet file, a few at a time.

    What its footer says is bounded before anything is decoded, what it decodes to in another process, and cells before
    they become Python's.
    """
    import pyarrow
    import pyarrow.compute

    schema, about = file.schema_arrow, file.metadata
    _check_columns(path, [name.strip() for name in schema.names])
    if about.num_rows > ROWS:
        raise UsageError(f"{path}: {about.num_rows:,} rows; at most {ROWS:,} are read")
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    size = sum(group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns))
    if size > BYTES:
        raise UsageError(f"{path}: {size:,} bytes once it is unpacked; at most {BYTES:,} are read")
    if reason := refusal("defensekit.host.parquet_trial", path, SECONDS, GIB, "decode"):
        raise UsageError(f"{path}: refused: {reason}")
    number, left = 0, BYTES
    for batch in file.iter_batches(AT_ONCE):
        for name, column in zip(schema.names, batch.columns, strict=True):
            cells = column.dictionary if pyarrow.types.is_dictionary(column.type) else column
            if pyarrow.types.is_large_string(cells.type) or pyarrow.types.is_string(cells.type):
                longest = pyarrow.compute.max(pyarrow.compute.binary_length(cells)).as_py() or 0
                if longest > 4 * CELL:  # bytes of UTF-8
                    where = f"{path}, rows {number} to {number + len(column) - 1}"
                    raise UsageError(f"{where}: {longest:,} bytes in the column {name!r}; at most {CELL:,} characters")
        left -= batch.nbytes
        if left < 0:
            raise UsageError(f"{path}, row {number}: more than {BYTES:,} bytes of cells; refused")
        for values in batch.to_pylist():
            yield Record(f"{path}, row {number}", {name.strip(): value for name, value in values.items()})
            number += 1
