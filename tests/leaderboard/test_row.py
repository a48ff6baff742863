"""A row's folder may come from a stranger: plain files of known names, as they were when it was made."""

import io
import json
import lzma
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from defensekit.leaderboard import row as rows
from defensekit.leaderboard.board import checkers, rows_in
from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.row import PACK, RECORD, pack, read_row
from defensekit.leaderboard.tracks import ATTACK, Track
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.leaderboard.helpers import seal, wrong

WORD = "cells/word-3.json"


def test_a_changed_file(track: Track, row: Path) -> None:
    (row / WORD).write_text((row / WORD).read_text().replace("0.5", "0.4", 1))
    assert f"{WORD} is not what its digest in row.json says" in wrong(track, row)


def test_a_file_that_is_not_there(track: Track, row: Path) -> None:
    next((row / "answers").iterdir()).unlink()
    assert "is listed and not there" in wrong(track, row)


@pytest.mark.parametrize("name", ["run.sh", "cells/word-3.json.bak", "answers/x.safetensors", "a.b.py"])
def test_a_file_without_a_place(name: str, track: Track, row: Path) -> None:
    (row / name).parent.mkdir(parents=True, exist_ok=True)
    (row / name).write_text("x")
    assert f"{name} has no place in a row" in wrong(track, row)


def test_a_file_that_is_not_listed(track: Track, row: Path) -> None:
    (row / "other.py").write_text("x")
    assert "other.py is there and not listed" in wrong(track, row)


def test_a_plugin_called_like_the_folder_of_verifications_is_a_file_like_others(track: Track, row: Path) -> None:
    (row / "verifications_more.py").write_text("x")
    assert "verifications_more.py is there and not listed" in wrong(track, row)


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


# -- packed ------------------------------------------------------------------------------------------------------------


def test_a_row_is_packed(track: Track, made: Path, row: Path) -> None:
    assert {path.name for path in made.iterdir()} == {"entry.yaml", "row.json", "twelve.py", PACK}
    loose = sum(path.stat().st_size for part in ("cells", "answers") for path in (row / part).rglob("*.*"))
    assert (made / PACK).stat().st_size < loose / 3
    pack(row)
    assert (row / PACK).read_bytes() == (made / PACK).read_bytes()
    assert Checker(track).check(row).digest == Checker(track).check(made).digest


def test_a_pack_that_was_changed(track: Track, row: Path) -> None:
    (row / WORD).write_text((row / WORD).read_text().replace("0.5", "0.4", 1))
    pack(row)
    assert f"{WORD} is not what its digest in row.json says" in wrong(track, row)
    (row / "cells").mkdir()
    (row / WORD).write_text("{}")
    assert f"{WORD} is there packed and unpacked" in wrong(track, row)


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def member(name: str, data: bytes = b"", **about: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in {"size": len(data), **about}.items():
        setattr(info, key, value)
    return info, data


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"no xz", "is cut short"),
        (lzma.compress(b"no tar" * 200), "can't be unpacked"),
        (lzma.compress(tarred(member(WORD, b"{}")))[:-8], "goes beyond what a row may have (10 files"),
        (lzma.compress(tarred(member("../../evil.json"))), "'../../evil.json' has no place in it"),
        (lzma.compress(tarred(member("entry.yaml"))), "'entry.yaml' has no place in it"),
        (lzma.compress(tarred(member("\x1b[2J.json"))), r"'\x1b[2J.json' has no place in it"),
        (lzma.compress(tarred(member(WORD, type=tarfile.SYMTYPE, linkname="/etc/passwd"))), f"{WORD} is no plain file"),
        (lzma.compress(tarred(member(WORD, b"0" * 20_000))), "goes beyond what a row may have"),
        (
            lzma.compress(tarred(*[member(f"cells/{i}.json") for i in range(20)])),
            "goes beyond what a row may have (10 files",
        ),
        (lzma.compress(b"\0" * 200_000), "10 files, 100,000 bytes in all"),
        (lzma.compress(tarred(), preset=9), "emory usage limit"),
    ],
)
def test_a_pack_of_a_stranger(packed: bytes, message: str, row: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in {"FILES": 10, "BYTES": 100_000, "FILE_BYTES": 10_000, "_UNPACKING": 20_000_000}.items():
        monkeypatch.setattr(rows, name, limit)
    for part in ("cells", "answers"):
        shutil.rmtree(row / part)
    (row / PACK).write_bytes(packed)
    with pytest.raises(DefenseKitError) as error:
        read_row(row)
    assert message in str(error.value)
