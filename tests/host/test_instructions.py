"""Instructions in the forms that are in use, and what is wrong with others."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from defensekit.host.instructions import Instructions
from defensekit.models.config import relabelled
from defensekit.text import Row, read_rows, split, write_rows
from defensekit.utils.errors import UsageError

EXPECTED = [Row(0, "say hello", 0, None, "hello"), Row(1, "say it", 0, "bye", "good bye")]
ALPACA: list[dict[str, Any]] = [
    {"instruction": "say hello", "input": "", "output": "hello"},
    {"instruction": " say it", "input": "bye", "output": "good bye "},
]
MESSAGES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello"}]},
    {"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "good bye"}]},
]
SHAREGPT: list[dict[str, Any]] = [
    {"conversations": [{"from": "human", "value": "say hello"}, {"from": "gpt", "value": "hello"}]},
    {"conversations": [{"from": "human", "value": "say it"}, {"from": "gpt", "value": "good bye"}]},
]


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("form", ["alpaca", "messages", "sharegpt"])
def test_every_form_in_every_file(tmp_path: Path, form: str, suffix: str) -> None:
    records = {"alpaca": ALPACA, "messages": MESSAGES, "sharegpt": SHAREGPT}[form]
    dataset = Instructions(path=written(tmp_path / f"rows{suffix}", records)).load()
    assert dataset.labels == ()
    without = [row if form == "alpaca" else Row(row.id, row.text, 0, None, row.response) for row in EXPECTED]
    assert dataset.train == without
    assert dataset.notes == []


def test_response_is_another_name_and_the_input_may_be_missing(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"instruction": "say hello", "response": "hello"}])
    assert Instructions(path=path).load().train == EXPECTED[:1]


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    more = {"messages": [*MESSAGES[0]["messages"], {"role": "user", "content": "and?"}]}
    path = written(tmp_path / "rows.json", [*ALPACA, {"instruction": "say", "output": " "}, more])
    dataset = Instructions(path=path).load()
    assert len(dataset.train) == 3
    assert dataset.notes[0] == f"1 rows without instruction or response are left out ({path}, row 2)"
    assert dataset.notes[1] == f"of 1 conversations the first exchange alone is read ({path}, row 3)"


def test_long_rows_are_left_out(tmp_path: Path) -> None:
    """Instruction, input and response count together."""
    long = {"instruction": "one two", "input": "three", "output": "four five six"}
    path = written(tmp_path / "rows.json", [long, {"instruction": "one two", "output": "three four five"}])
    assert [row.response for row in Instructions(path=path, max_words=5).load().train] == ["three four five"]
    assert Instructions(path=path, max_words=5).load().notes == ["1 rows of more than 5 words are left out"]
    assert len(Instructions(path=path, max_words=6).load().train) == 2
    with pytest.raises(UsageError, match="there are no rows; 2 rows of more than 4 words are left out"):
        Instructions(path=path, max_words=4).load()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a", "label": 1}, r"rows.jsonl, line 1: no instruction with a response \(columns: text, label\)"),
        ({"instruction": "a"}, "line 1: no instruction with a response"),
        ({"instruction": "a", "output": ["b"]}, "line 1: the column 'output' holds a list"),
        ({"messages": "hello"}, "line 1: the column 'messages' holds no list of turns"),
        ({"messages": [{"role": "user"}]}, r"line 1, turn 0: there is no 'content' \(expected 'role' and 'content'\)"),
        ({"messages": []}, "line 1: the speakers are nobody; expected 'user' and then 'assistant'"),
        (
            {"messages": [{"role": "system", "content": "be kind"}, *MESSAGES[0]["messages"]]},
            r"the speakers are system, user, assistant; expected 'user'.*a system prompt is not read",
        ),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "the speakers are gpt; expected 'human' and then 'gpt'"),
    ],
)
def test_another_form_is_an_error_with_its_line(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Instructions(path=written(tmp_path / "rows.jsonl", [record])).load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"instruction": "a"}', "rows.json: expected a JSON array of objects, got dict"),
        ("[1]", "rows.json, row 0: expected a JSON object, got int"),
        ("[", r"rows.json: not JSON \("),
        ("[]", "rows.json: there are no rows"),
    ],
)
def test_a_json_file_of_something_else_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        Instructions(path=tmp_path / "rows.json").load()


def test_rows_are_split_and_kept_as_they_are(tmp_path: Path) -> None:
    records = [{"instruction": f"say {i}", "output": f"{i} \u2028"} for i in range(20)]
    dataset = Instructions(path=written(tmp_path / "rows.json", [*records, *records])).load()
    parts = split(dataset, {"test": 5, "dev": 3, "clean": 4, "train": None}, 0)
    assert [len(parts[role]) for role in ("test", "dev", "clean", "train")] == [5, 3, 4, 8]
    write_rows(tmp_path / "kept.jsonl", dataset.train)
    assert read_rows(tmp_path / "kept.jsonl") == dataset.train
    with pytest.raises(UsageError, match="the rows are instructions, and the model answers with labels: bad, good"):
        relabelled(dataset, ["bad", "good"])
    with pytest.raises(UsageError, match="`balance: equal` is about labels"):
        split(dataset, {"test": 5, "dev": 3, "clean": 4, "train": None}, 0, "equal")
