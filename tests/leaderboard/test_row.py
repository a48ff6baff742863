"""A row's folder may come from a stranger: plain files of known names, as they were when it was made."""

import json
import os
import shutil
from pathlib import Path

import pytest

from defensekit.leaderboard import row as rows
from defensekit.leaderboard.board import checkers, rows_in
from defensekit.leaderboard.row import RECORD
from defensekit.leaderboard.tracks import ATTACK, Track
from defensekit.utils.errors import UsageError
from tests.leaderboard.helpers import seal, wrong

WORD = "cells/word-3.json"


def test_a_changed_file(track: Track, row: Path) -> None:
    (row / WORD).write_text((row / WORD).read_text().replace("0.5", "0.4", 1))
    assert f"{WORD} is not what its digest in row.json says" in wrong(track, row)


def test_a_file_that_is_not_there(track: Track, row: Path) -> None:
    shutil.rmtree(next((row / "predictions").iterdir()))
    assert "is listed and not there" in wrong(track, row)


@pytest.mark.parametrize("name", ["run.sh", "cells/word-3.json.bak", "predictions/x/predictions.safetensors", "a.b.py"])
def test_a_file_without_a_place(name: str, track: Track, row: Path) -> None:
    (row / name).parent.mkdir(parents=True, exist_ok=True)
    (row / name).write_text("x")
    assert f"{name} has no place in a row" in wrong(track, row)


def test_a_file_that_is_not_listed(track: Track, row: Path) -> None:
    (row / "other.py").write_text("x")
    assert "other.py is there and not listed" in wrong(track, row)


def test_a_link_out_of_the_folder(track: Track, row: Path, tmp_path: Path) -> None:
    (row / "entry.yaml").rename(tmp_path / "elsewhere.yaml")
    (row / "entry.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    assert "entry.yaml is no plain file" in wrong(track, row)


def test_a_record_that_is_no_plain_file(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    for name, make in {
        "zero": lambda path: path.symlink_to("/dev/zero"),
        "link": lambda path: path.symlink_to(tmp_path / "secret.json"),
        "pipe": os.mkfifo,
    }.items():
        (tmp_path / "rows" / name).mkdir(parents=True)
        make(tmp_path / "rows" / name / RECORD)
    for folder in rows_in(tmp_path / "rows"):
        with pytest.raises(UsageError, match=r"no (plain|regular) file; refused"):
            checkers()(folder)


def test_an_attack_beside_rows_that_is_a_link(row: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("secret: words")
    (row.parent / ATTACK).symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(UsageError, match="no plain file; refused"):
        checkers()(row)


def test_a_path_out_of_the_folder(track: Track, row: Path) -> None:
    record = json.loads((row / RECORD).read_text())
    record["files"]["../../etc/passwd"] = "0" * 64
    (row / RECORD).write_text(json.dumps(record))
    assert "../../etc/passwd is listed and not there" in wrong(track, row)


def test_too_much(track: Track, row: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "FILE_BYTES", 3000)
    assert "goes beyond what a row may have" in wrong(track, row)


def test_no_row(track: Track, tmp_path: Path) -> None:
    assert "is no row: it has no row.json" in wrong(track, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 2}', '{"schema_version": 1, "run": "rm"}'])
def test_a_damaged_record(text: str, track: Track, row: Path) -> None:
    (row / RECORD).write_text(text)
    assert f"{RECORD}: " in wrong(track, row)


def test_what_a_terminal_would_obey(track: Track, row: Path) -> None:
    entry = row / "entry.yaml"
    entry.write_text(entry.read_text().replace("Twelve <b>lines</b>", '"\\e[2J"'))
    seal(row)
    assert "title: string should match pattern" in wrong(track, row)
