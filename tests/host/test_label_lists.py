"""Lists of labels in tables: rows with any number of them, in every format."""

import json
from pathlib import Path

import pytest

from defensekit.host import table_sources
from defensekit.host.table_sources import File, Hub
from defensekit.text import read_rows, split, write_rows
from defensekit.utils.errors import UsageError

TEXTS = ("a film", "a story", "a scene", "some people")
LABELS = (["warm", "odd"], ["odd"], [], ["warm"])
INDICATORS = [(1, 1), (1, 0), (0, 0), (0, 1)]  # odd, warm


def lines(*labels: object) -> str:
    return "".join(json.dumps({"text": f"t{i}", "label": label}) + "\n" for i, label in enumerate(labels))


def written(path: Path) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": LABELS}), path)
    elif path.suffix in (".json", ".jsonl"):
        objects = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
        one = json.dumps(objects) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in objects)
        path.write_text(one)
    else:
        cells = [json.dumps(label) for label in LABELS]
        if path.suffix == ".csv":
            cells = ['"' + cell.replace('"', '""') + '"' for cell in cells]
        comma = "," if path.suffix == ".csv" else "\t"
        rows = "".join(f"{text}{comma}{cell}\n" for text, cell in zip(TEXTS, cells, strict=True))
        path.write_text(f"text{comma}label\n{rows}")
    return path


@pytest.mark.parametrize("suffix", table_sources.SUFFIXES)
def test_every_format_holds_lists(tmp_path: Path, suffix: str) -> None:
    dataset = File(path=written(tmp_path / f"rows{suffix}")).load()
    assert dataset.labels == ("odd", "warm")
    assert [row.indicator for row in dataset.train] == INDICATORS
    assert {row.task for row in dataset.train} == {"multi-label"}
    write_rows(tmp_path / "kept", dataset.train)
    assert read_rows(tmp_path / "kept") == dataset.train


def test_a_hub_holds_lists_of_numbers_of_its_labels(tmp_path: Path) -> None:
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["warm", "odd"]))}
    labels = [[0, 1], [1], [], [0]]
    made = datasets.Dataset.from_dict({"text": list(TEXTS), "label": labels}, features=datasets.Features(features))
    made.to_parquet(tmp_path / "train.parquet")
    dataset = Hub(id=str(tmp_path)).load()
    assert [row.indicator for row in dataset.train] == INDICATORS


def test_numbers_are_labels_and_a_missing_list_leaves_a_row_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines([10, 9], None, [9]))
    dataset = File(path=path).load()
    assert dataset.labels == ("9", "10")
    assert [row.indicator for row in dataset.train] == [(1, 1), (1, 0)]
    assert dataset.notes == [f"1 rows without text or label are left out ({path}, line 2)"]


def test_a_text_in_brackets_is_a_label_where_it_is_no_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines("[sic]", "[" * 90_000, "x"))
    assert {row.task for row in File(path=path).load().train} == {"classification"}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ((["a"], "b"), "line 2: the column 'label' holds one label, and a list of labels in .*line 1; expected lists"),
        (("b", ["a"]), "line 2: the column 'label' holds a list of labels, and one label in .*line 1"),
        ((["a", "a"],), "line 1: the list in the column 'label' names a label twice"),
        ((["a", ""],), "line 1: the list in the column 'label' holds an empty label"),
        ((["a", None],), "line 1: the list in the column 'label' holds an empty label"),
        (([["a"]],), "line 1: the column 'label' holds a list; expected text or a number"),
        (([{"a": 1}],), "line 1: the column 'label' holds a dict"),
        (([], []), "no label in any row; expected one at least"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_labels_is_refused_with_its_line(
    tmp_path: Path, labels: tuple[object, ...], said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(*labels))
    with pytest.raises(UsageError, match=said):
        File(path=path).load()


def test_labels_times_rows_are_bounded_and_of_unknown_ones_the_row_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.jsonl").write_text(lines(["a", "b"], ["a"]))
    (tmp_path / "test.jsonl").write_text(lines(["a", "c"]))
    with pytest.raises(UsageError, match=r"test.jsonl, line 1: the label 'c' is unknown, .* labels: a, b"):
        File(path=tmp_path).load()
    monkeypatch.setattr(table_sources, "_MARKS", 3)
    with pytest.raises(
        UsageError, match="2 labels in lists; expected one at least, and at most 3 of labels times rows"
    ):
        File(path=tmp_path / "train.jsonl").load()


def test_roles_and_notes_are_as_of_other_rows_but_nothing_is_balanced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(*[["a"], ["b"], ["a", "b"], []] * 10) + '{"text": "T0", "label": ["b"]}\n')
    dataset = File(path=path).load()
    assert "1 texts occur with more than one label ('t0')" in dataset.notes[0]
    sizes = {"test": 8, "dev": 8, "clean": 8, "train": 0}
    assert [len(rows) for rows in split(dataset, sizes, 0).values()] == [8, 8, 8, 0]
    with pytest.raises(UsageError, match="`balance: equal` is about rows with one label each"):
        split(dataset, sizes, 0, "equal")
