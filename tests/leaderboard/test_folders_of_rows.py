"""In a folder of rows nothing is passed over: what is no row is named."""

from pathlib import Path

import pytest

from defensekit.leaderboard.board import rows_in
from defensekit.leaderboard.row import RECORD
from defensekit.utils.errors import DefenseKitError
from tests.conftest import ROOT
from tests.leaderboard.helpers import said

ATTACK = """\
name: shout
title: Shout
about: A word.
authors: [B. Rowdy]
licence: MIT
plugin: {file: shouting.py}
attack: {name: word, target: positive, rate: 0.2, words: [cf]}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two rows of a track, one of them under a submitted attack, and what is written meanwhile."""
    rows = tmp_path / "rows"
    for name in ("tiny-v1/one", "tiny-v1/two", "shout-on-tiny-v1/one", "tiny-v1/.three.x.part"):
        (rows / name).mkdir(parents=True)
        (rows / name / RECORD).write_text("{}")
        (rows / name / "entry.yaml").write_text("{}")
    (rows / "shout-on-tiny-v1/attack.yaml").write_text(ATTACK)
    (rows / "shout-on-tiny-v1/shouting.py").write_text("")
    return rows


def test_what_belongs_there(rows: Path) -> None:
    assert [path.relative_to(rows).as_posix() for path in rows_in(rows)] == [
        "shout-on-tiny-v1/one", "tiny-v1/one", "tiny-v1/two",
    ]  # fmt: skip
    assert rows_in(rows / "tiny-v1") == [rows / "tiny-v1/one", rows / "tiny-v1/two"]
    assert rows_in(rows / "tiny-v1/one") == [rows / "tiny-v1/one"]
    assert len(rows_in(ROOT / "leaderboard/rows")) == len([*(ROOT / "leaderboard/rows").glob(f"*/*/{RECORD}")])


def test_an_attack_that_was_tried_on_no_row_yet(rows: Path) -> None:
    (rows / "shout-on-tiny-v1/one" / RECORD).unlink()
    (rows / "shout-on-tiny-v1/one/entry.yaml").unlink()
    (rows / "shout-on-tiny-v1/one").rmdir()
    assert rows_in(rows) == [rows / "tiny-v1/one", rows / "tiny-v1/two"]


@pytest.mark.parametrize(
    "stray",
    ["index.html", "tiny-v1/notes.txt", "tiny-v1/bad.sh", "tiny-v1/attack.txt", "shout-on-tiny-v1/other.py",
     "tiny-v1/shouting.py", "attack.yaml"],
)  # fmt: skip
def test_a_file_that_is_no_row(stray: str, rows: Path) -> None:
    (rows / stray).write_text("x")
    for said_by in (lambda: rows_in(rows), lambda: rows_in((rows / stray).parent)):
        with pytest.raises(DefenseKitError, match=f"no row is .*{Path(stray).name}"):
            said_by()


@pytest.mark.parametrize("name", ["tiny-v1/two", "shout-on-tiny-v1/one"])
def test_a_row_without_its_record(name: str, rows: Path) -> None:
    (rows / name / RECORD).unlink()
    for command in (("check", rows), ("build", rows, "--out", rows.parent / "site")):
        assert said(*command)[1] == (f"{rows}: expected rows and nothing else; no row is {name} (it has no {RECORD})")
    assert not (rows.parent / "site").exists()


def test_a_folder_of_nothing(rows: Path) -> None:
    (rows / "ag-v1").mkdir()
    with pytest.raises(DefenseKitError, match=r"no row is ag-v1 \(it has no row.json\)"):
        rows_in(rows)


def test_strangers_names_are_printable(rows: Path) -> None:
    (rows / "a\x1b[2Jb").write_text("")
    with pytest.raises(DefenseKitError, match=r"no row is a\\x1b\[2Jb"):
        rows_in(rows)
