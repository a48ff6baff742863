"""Rows at the border of what is data: each is read by a rule, or refused with file and line."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from defensekit.host import tables
from defensekit.host.table_sources import File
from defensekit.utils.errors import UsageError


def written(folder: Path, rows: list[dict[str, Any]]) -> File:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return File(path=path)


def stored(folder: Path, **columns: Any) -> File:
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return File(path=path)


@pytest.mark.parametrize(
    ("text", "label", "said"),
    [
        ("half \ud83d", 0, r"rows.jsonl, line 2: the column 'text' holds half a character"),
        ("a", "\udfff", r"rows.jsonl, line 2: the column 'label' holds half a character"),
        (["a", "b"], 0, r"line 2: the column 'text' holds a list; expected text or a number"),
        ([{"role": "user", "content": "a"}], 0, "holds a list"),
        ({"a": 1}, 0, "holds a dict"),
    ],
)
def test_a_cell_that_is_no_text(tmp_path: Path, text: Any, label: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        written(tmp_path, [{"text": "b", "label": 1}, {"text": text, "label": label}]).load()


def test_bytes_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rows.parquet, row 0: the column 'text' holds a bytes"):
        stored(tmp_path, text=[b"a", b"b"], label=[0, 1]).load()


def test_a_missing_label_among_numbers(tmp_path: Path) -> None:
    """pandas writes labels beside a missing one as 0.0, 1.0 and NaN."""
    got = stored(tmp_path, text=["a", "b", "c"], label=[0.0, 1.0, math.nan]).load()
    assert got.labels == ("0", "1")
    assert len(got.train) == 2
    assert got.notes == [f"1 rows without text or label are left out ({tmp_path / 'rows.parquet'}, row 2)"]


@pytest.mark.parametrize("turn", range(4))
def test_labels_that_look_like_numbers_have_one_order(tmp_path: Path, turn: int) -> None:
    labels = ["10", "1", "01", "001", "--1", "-1", "\u0663", "9" * 5000, "b"]
    labels = labels[turn:] + labels[:turn]
    got = written(tmp_path, [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]).load()
    assert got.labels == ("-1", "001", "01", "1", "10", "--1", "9" * 5000, "b", "\u0663")


def test_a_text_with_two_labels_is_said(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in (("Good  film", 0), ("good film", 1), ("bad", 0))]
    [note] = written(tmp_path, rows).load().notes
    assert note.startswith(f"{tmp_path / 'rows.jsonl'}: 1 texts occur with more than one label ('good film')")


@pytest.mark.parametrize(
    ("bounds", "name", "content", "said"),
    [
        ({"CELL": 10}, "a.csv", 'text,label\n"x\nxxxxxxxxxxxx",1\n', "a.csv, line 3: field larger than field limit"),
        ({"CELL": 10}, "a.tsv", "text\tlabel\nxxxxxxxxxxxx\t1\n", "a.tsv, line 2: 12 characters in the column 'text'"),
        ({"LINE": 20}, "a.csv", "text,label\n" + "x" * 30, "a.csv, line 2: more than 20 characters"),
        ({"LINE": 20}, "a.jsonl", "x" * 30, "a.jsonl, line 1: more than 20 characters"),
        ({"COLUMNS": 2}, "a.csv", "a,b,c\n", "a.csv: 3 columns; at most 2"),
        ({"ROWS": 2}, "a.csv", "text,label\n" + "a,1\n" * 3, "a.csv, line 4: more than 2 rows"),
        ({"BYTES": 5}, "a.csv", "text,label\n", "refused 11 bytes; at most 5"),
    ],
)
def test_a_table_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: dict[str, int], name: str, content: str, said: str
) -> None:
    for bound, value in bounds.items():
        monkeypatch.setattr(tables, bound, value)
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        File(path=tmp_path / name).load()


def test_a_parquet_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 5_000_001
    runs = pyarrow.DictionaryArray.from_arrays(pyarrow.repeat(pyarrow.scalar(0, pyarrow.int8()), rows), ["x"])
    many = stored(tmp_path, text=runs, label=runs)
    assert many.path.stat().st_size < 1_000_000
    with pytest.raises(UsageError, match="5,000,001 rows; at most 5,000,000 are read"):
        many.load()
    with pytest.raises(UsageError, match=r"rows 0 to 1: 5,000,000 bytes in the column 'text'; at most 1,000,000"):
        stored(tmp_path, text=["x" * 5_000_000] * 2, label=[0, 1]).load()
    same = stored(tmp_path, text=["x" * 1_000] * 2_000, label=[0] * 2_000)
    monkeypatch.setattr(tables, "BYTES", 1_000_000)
    with pytest.raises(UsageError, match="more than 1,000,000 bytes of cells"):
        same.load()


def varint(number: int, length: int = 0) -> bytes:
    """A number as a Parquet footer has it, filled up to a length."""
    parts = []
    while number or len(parts) < max(length, 1):
        parts.append(number & 127)
        number >>= 7
    return bytes([*(part | 128 for part in parts[:-1]), parts[-1]])


def test_a_parquet_file_that_lies_about_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    told = pyarrow.table({"text": [f"{i}".zfill(1_000) for i in range(3_000)], "label": ["a"] * 3_000})
    pyarrow.parquet.write_table(told, path, compression="zstd", use_dictionary=False)
    size = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    assert size > 3_000_000
    honest = varint(2 * size)
    content = path.read_bytes()
    place = content.rindex(honest)
    path.write_bytes(content[:place] + varint(2, len(honest)) + content[place + len(honest) :])
    monkeypatch.setattr(tables, "BYTES", 1_000_000)
    with pytest.raises(UsageError, match="more than 1,000,000 bytes of cells"):
        File(path=path).load()


def test_a_parquet_file_that_decodes_to_far_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is stored once for many rows: no size in the footer is wrong."""
    column = pyarrow.DictionaryArray.from_arrays([0] * 64, ["x" * 10_000_000])
    bomb = stored(tmp_path, text=column, label=column)
    assert bomb.path.stat().st_size < 5_000_000
    with pytest.raises(UsageError, match=r"10,000,000 bytes in the column 'text'; at most 1,000,000"):
        bomb.load()
    table = pyarrow.table({"text": column, "label": column})
    pyarrow.parquet.write_table(table, bomb.path, store_schema=False)  # read as text, not as a dictionary
    monkeypatch.setattr(tables, "GIB", 1)
    with pytest.raises(UsageError, match=r"rows.parquet: refused: it takes more than 1 GiB to decode"):
        bomb.load()


def test_a_hundred_thousand_columns_are_counted_not_compared(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(f"c{i}" for i in range(100_000)) + "\n")
    with pytest.raises(UsageError, match="100,000 columns; at most 1,000"):
        File(path=tmp_path / "a.csv").load()
