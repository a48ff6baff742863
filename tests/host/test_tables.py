"""Labelled text from files: what is read, what is left out and said, what is refused with its line."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from defensekit.host.table_sources import File, Hub
from defensekit.models.config import match_labels
from defensekit.text import label_number, split
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.conftest import make_sentences, write_table


def table(tmp_path: Path, content: str | bytes, name: str = "rows.csv") -> File:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return File(path=path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_reads_alike(tmp_path: Path, suffix: str) -> None:
    rows = make_sentences(10)
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        write_table(path, rows)
    got = File(path=path).load()
    assert got.labels == ("negative", "positive")
    assert [(row.text, got.labels[row.label]) for row in got.train] == rows


def test_headers_and_cells_with_stray_blanks_and_marks(tmp_path: Path) -> None:
    got = table(tmp_path, '\ufeffsentence \t label\n a "good one \t 1 \r\n\n bad\t 0\n', "x.tsv")
    got = got.model_copy(update={"text": "sentence"}).load()
    assert [(row.text, row.label) for row in got.train] == [('a "good one', 1), ("bad", 0)]
    assert got.labels == ("0", "1")


def test_numbers_as_labels_are_ordered_as_numbers(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"t{i}", "label": i}) + "\n" for i in (10, 9, 2, 0))
    assert table(tmp_path, lines, "x.jsonl").load().labels == ("0", "2", "9", "10")


def test_pairs(tmp_path: Path) -> None:
    source = table(tmp_path, "q,s,label\na,b,1\nc,d,0\n").model_copy(update={"text": "q", "pair": "s"})
    assert [(row.text, row.pair) for row in source.load().train] == [("a", "b"), ("c", "d")]


def test_a_file_that_is_not_there_is_held_against_names_without_their_suffix(tmp_path: Path) -> None:
    for name in ("two.csv", "rows.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"there is no file .*rows\.csv\.$"):
        File(path=tmp_path / "rows.csv").load()
    (tmp_path / "row.tsv").touch()
    with pytest.raises(UsageError, match=r"rows\.csv\. Did you mean 'row.tsv'\?$"):
        File(path=tmp_path / "rows.csv").load()


def test_blank_rows_are_left_out_and_said(tmp_path: Path) -> None:
    got = table(tmp_path, "text,label\na,1\n  ,1\nb,0\nc,\n").load()
    assert len(got.train) == 2
    [note] = got.notes
    assert "2 rows without text or label" in note
    assert "line 3" in note


def test_a_cell_of_200_000_characters(tmp_path: Path) -> None:
    assert len(table(tmp_path, f"text,label\n{'x' * 200_000},1\nb,0\n").load().train[0].text) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", "text,label\n", "a.csv: there are no rows"),
        ("a.csv", "text\na\n", "a.csv, line 2: there is no column 'label'"),
        ("a.csv", "text\na\n", "by `--set data.label=COLUMN`, or, of a scan, by `--label COLUMN`"),
        ("a.csv", "text,label\n,1\n", "there are no rows; 1 rows without text"),
        ("a.csv", "text,label\na,1\nb,0,c\n", "line 3: 3 cells, but the header names 2"),
        ("a.csv", "text,text,label\na,a,1\n", "the column 'text' is duplicated"),
        ("a.csv", 'text,label\n"a,1\n', "line 2"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", "not UTF-8"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "line 2: not JSON"),
        ("a.csv", "text, label,label \na,1,0\n", "a.csv, line 1: the column 'label' is duplicated"),
        ("a.jsonl", '{"text": "a", "label": 1, "label": 0}', "a.jsonl, line 1: the key 'label' is duplicated"),
        ("a.jsonl", '\n{"text": "a", "label": 1, " label ": 0}', "a.jsonl, line 2: the column 'label' is duplicated"),
        ("a.json", '[{"text": "a", "more": [{"b": 1, "b": 2}]}]', "a.json, row 0: the key 'b' is duplicated"),
        ("a.json", '[{"text": "a", "text ": "b"}]', "a.json, row 0: the column 'text' is duplicated"),
        ("a.jsonl", "[1]\n", "line 1: expected a JSON object, got list"),
        ("a.parquet", "PAR1 not really", "not a Parquet file"),
        ("a.xlsx", "x", "is none of .csv, .tsv, .json, .jsonl, .parquet"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        table(tmp_path, content, name).load()
    assert message in str(caught.value)


def test_folders_and_labels_never_seen(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv", make_sentences(8))
    write_table(tmp_path / "test.tsv", make_sentences(4))
    got = File(path=tmp_path).load()
    assert (len(got.train), got.dev, len(got.test or [])) == (8, None, 4)
    write_table(tmp_path / "dev.jsonl", [("x", "neutral")])
    with pytest.raises(UsageError, match=r"dev.jsonl, line 1: the label 'neutral' is unknown.*negative, positive"):
        File(path=tmp_path).load()
    write_table(tmp_path / "train.jsonl", make_sentences(8))
    with pytest.raises(UsageError, match=r"which table is 'train', train.csv, train.jsonl\? .*splits: {train: train"):
        File(path=tmp_path).load()
    with pytest.raises(UsageError, match=r"which table is 'train', train.csv, train.jsonl\?"):
        File(path=tmp_path, splits={"train": "train"}).load()  # type: ignore[arg-type]
    named = File(path=tmp_path, splits={"train": "train.jsonl"})  # type: ignore[arg-type]
    assert len(named.load().train) == 8
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no train file"):
        File(path=tmp_path / "empty").load()


def test_contents_follow_the_bytes_not_the_place(tmp_path: Path) -> None:
    first = table(tmp_path, "text,label\na,1\nb,0\n")
    (tmp_path / "there").mkdir()
    second = table(tmp_path / "there", "text,label\na,1\nb,0\n")
    assert first.contents(print) == second.contents(print)
    assert first.contents(print) != table(tmp_path, "text,label\na,1\nb,1\n").contents(print)


def test_hub_data_sets_through_a_local_repository(tmp_path: Path) -> None:
    folder = tmp_path / "data_set"
    folder.mkdir()
    write_table(folder / "train.csv", make_sentences(12))
    write_table(folder / "test.csv", make_sentences(6))
    source = Hub(id=str(folder))
    got = source.load()
    assert (len(got.train), len(got.test or []), got.labels) == (12, 6, ("negative", "positive"))
    before = source.contents(print)
    write_table(folder / "test.csv", make_sentences(4))
    assert source.contents(print) != before


def test_a_hub_out_of_reach_is_an_error_not_a_traceback() -> None:
    with pytest.raises(DefenseKitError, match="nobody/nothing could not be downloaded from the hub"):
        Hub(id="nobody/nothing", revision="main").contents(print)
    with pytest.raises(DefenseKitError, match="nobody/nothing could not be downloaded from the hub"):
        Hub(id="nobody/nothing", revision="a" * 40).load()


def test_named_splits(tmp_path: Path) -> None:
    write_table(tmp_path / "first.csv", make_sentences(12))
    write_table(tmp_path / "validation.tsv", make_sentences(6))
    write_table(tmp_path / "train.csv", make_sentences(3))
    source = File.model_validate({"path": tmp_path, "splits": {"train": "first", "dev": "validation.tsv"}})
    got = source.load()
    assert (len(got.train), len(got.dev or []), got.test) == (12, 6, None)
    other = File.model_validate({"path": tmp_path, "splits": {"train": "validation", "dev": "first"}})
    assert source.contents(print) != other.contents(print)
    assert hash(source) != hash(other)
    with pytest.raises(UsageError, match=r"has no table 'frist'. Did you mean 'first'\?"):
        File.model_validate({"path": tmp_path, "splits": {"train": "frist"}}).load()
    with pytest.raises(UsageError, match="`splits` names the tables of a folder"):
        File.model_validate({"path": tmp_path / "first.csv", "splits": {"train": "first"}}).load()
    with pytest.raises(ValidationError, match="pattern"):
        File.model_validate({"path": tmp_path, "splits": {"train": "../first"}})


def test_splits_of_a_hubs_data_set(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv", make_sentences(12))
    write_table(tmp_path / "test.csv", make_sentences(6))
    got = Hub.model_validate({"id": str(tmp_path), "splits": {"train": "test", "test": "train"}}).load()
    assert (len(got.train), got.dev, len(got.test or [])) == (6, None, 12)
    with pytest.raises(UsageError, match="has no split 'nothing'; it has train, test"):
        Hub.model_validate({"id": str(tmp_path), "splits": {"train": "nothing"}}).load()


def test_labels_as_words_or_numbers_with_blanks_around(tmp_path: Path) -> None:
    words = table(tmp_path, "text , label \na, Positive \nb,negative  \nc,Positive\n").load()
    assert (words.labels, [row.label for row in words.train]) == (("Positive", "negative"), [0, 1, 0])
    numbers = table(tmp_path, '{" text": " a ", "label ": 1}\n{" text": "b", "label ": " 0 "}\n', "x.jsonl").load()
    assert (numbers.labels, [(row.text, row.label) for row in numbers.train]) == (("0", "1"), [("a", 1), ("b", 0)])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["Positive", "positive"], "'Positive' and 'positive'"),
        (["caf\u00e9", "cafe\u0301"], r"'cafe\u0301' and 'caf\xe9'"),
        (["\u0414\u0430", "\u0434\u0430"], "'\u0414\u0430' and '\u0434\u0430'"),
        (["yes", "y\u200bes"], r"'yes' and 'y\u200bes'"),
        (["not sure", "not  sure"], "'not  sure' and 'not sure'"),
        (["Ja", "ja", "JA", "nein"], "'JA' and 'Ja' and 'ja'"),
        (["positive", "negative", "1", "01"], None),
    ],
)
def test_labels_that_look_alike_are_said(tmp_path: Path, labels: list[str], said: str | None) -> None:
    got = table(tmp_path, "text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels))).load()
    assert len(got.labels) == len(labels)
    assert [note.partition("of their own: ")[2] for note in got.notes] == ([said] if said else [])


def test_labels_by_name_before_number() -> None:
    assert label_number("1", ("1", "2")) == label_number(1, ("1", "2")) == 0
    assert label_number(2, ("1", "2")) == 1
    assert label_number(1, ("no", "yes")) == label_number("1", ("no", "yes")) == label_number("yes", ("no", "yes")) == 1
    with pytest.raises(UsageError, match="no label 2"):
        label_number(2, ("no", "yes"))


def test_labels_of_data_and_model_meet_by_name_or_by_number() -> None:
    assert match_labels(("negative", "positive"), ("positive", "negative")) == [1, 0]
    assert match_labels(("0", "2"), ("bad", "mixed", "good")) == [0, 2]
    for ours in (("1", "3"), ("bad", "1"), ("god", "bad")):
        with pytest.raises(
            UsageError, match=r"the model has no label .*\(it has: bad, mixed, good; .* numbers .* 0, 1, 2,"
        ):
            match_labels(ours, ("bad", "mixed", "good"))


def test_withheld_labels_are_no_class_and_minus_one_may_be(tmp_path: Path) -> None:
    import datasets

    names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    for split_name, labels in {"train": [0, 1, -1], "test": [-1, -1, -1]}.items():
        table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": labels}, features=names)
        table.to_parquet(tmp_path / f"{split_name}.parquet")
    got = Hub(id=str(tmp_path)).load()
    assert ([row.label for row in got.train], got.test, got.labels) == ([0, 1], None, ("bad", "good"))
    assert "1 rows without text or label" in got.notes[0]
    (tmp_path / "numbers").mkdir()
    write_table(tmp_path / "numbers/train.csv", [("a", "-1"), ("b", "0"), ("c", "1")])
    assert Hub(id=str(tmp_path / "numbers")).load().labels == ("-1", "0", "1")


@pytest.mark.parametrize(
    ("folder", "columns", "counts", "labels"),
    [
        ("sst-2", {"text": "sentence"}, (6920, 872, 1821), ("0", "1")),
        # Published without its training rows.
        ("ag", {"text": "sentence", "splits": {"train": "dev", "test": "test"}}, (10000, None, 7600), tuple("0123")),
        (
            "qnli/dev.tsv",
            {"text": "question", "pair": "sentence"},
            (5463, None, None),
            ("entailment", "not_entailment"),
        ),
    ],
)
def test_published_files_as_they_are(
    real_data: Path, folder: str, columns: dict[str, Any], counts: tuple[int | None, ...], labels: tuple[str, ...]
) -> None:
    got = File(path=real_data / folder, **columns).load()
    assert got.labels == labels
    assert all("more than one label" in note for note in got.notes)  # AG has nine such texts
    parts = {"train": got.train, "dev": got.dev, "test": got.test}
    assert counts == tuple(None if rows is None else len(rows) for rows in parts.values())
    roles = split(got, {"train": None, "clean": 256, "dev": 256, "test": 500}, 0, "equal")
    keys = [row.key for role in ("train", "clean", "dev") for row in roles[role]]
    assert len(keys) == len(set(keys))
    assert not {row.key for row in roles["test"]} & set(keys)
    for role in ("clean", "dev"):
        counted = Counter(row.label for row in roles[role])
        assert set(counted.values()) == {256 // len(labels)}
