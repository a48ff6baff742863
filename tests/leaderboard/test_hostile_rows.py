"""A row of a stranger that is to break what reads it, or to look like another."""

import csv
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from defensekit.leaderboard import row as rows
from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.page import build
from defensekit.leaderboard.row import PACK, RECORD, read_row
from defensekit.leaderboard.scores import FAILED, SELF, THIRD, score
from defensekit.leaderboard.tracks import Track
from defensekit.utils.errors import DefenseKitError
from tests.leaderboard.helpers import edit, edit_all, replace_answers, said, seal, wrong
from tests.leaderboard.test_page import verified

WORD = "cells/word-3.json"


# -- the pack ----------------------------------------------------------------------------------------------------------


def header(name: str, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header of a tar with any size, and the checksum to fit."""
    made = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    made[124:136], made[156:157] = size.ljust(12, b"\0"), kind
    made[148:156] = b"%06o\0 " % (256 + sum(made[:148]) + sum(made[156:]))
    return bytes(made)


def pax(name: str, **said: str) -> bytes:
    """A member whose size and kind an extended header says."""
    info = tarfile.TarInfo(name)
    info.pax_headers = said
    return info.tobuf(tarfile.PAX_FORMAT)


BACKWARDS = b"\xff" * 10 + b"\xfe\0"  # -512, as GNU writes what is no octal number
EMPTY = header("cells/a.json", b"0" * 11)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (lzma.compress(EMPTY + header(WORD, BACKWARDS)), f"{WORD} is no plain file, or not whole"),
        (lzma.compress(pax(WORD, size="-512")), "is no plain file, or not whole"),
        (lzma.compress(pax(WORD, **{"GNU.sparse.major": "x", "GNU.sparse.name": "y"})), "is no plain file"),
        (lzma.compress(header(WORD, b"0" * 11, tarfile.GNUTYPE_SPARSE)), "is no plain file"),
        (lzma.compress(header(WORD, b"00000007777")), f"{WORD} is no plain file, or not whole"),
        (lzma.compress(EMPTY + EMPTY), "'cells/a.json' has no place in it"),
        (lzma.compress(EMPTY) + b"more", "goes on after its end"),
        (lzma.compress(EMPTY) + lzma.compress(EMPTY), "goes on after its end"),
    ],
)
def test_a_pack_that_leads_its_reader_on(packed: bytes, message: str, row: Path) -> None:
    for part in ("cells", "answers"):
        shutil.rmtree(row / part)
    (row / PACK).write_bytes(packed)
    with pytest.raises(DefenseKitError) as error:
        read_row(row)
    assert message in str(error.value)


def test_as_many_files_as_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "FILES", 3)
    packed = [lzma.compress(b"".join(header(f"cells/{i}.json", b"0" * 11) for i in range(n))) for n in (3, 4)]
    assert rows.unpacked(packed[0], tmp_path).keys() == {"cells/0.json", "cells/1.json", "cells/2.json"}
    with pytest.raises(DefenseKitError, match="goes beyond what a row may have"):
        rows.unpacked(packed[1], tmp_path)


# -- records -----------------------------------------------------------------------------------------------------------


def no_model(result: Any) -> None:
    del result["models"]["purified"]


def much_memory(result: Any) -> None:
    result["models"]["purified"]["peak_memory"] = 10**400


def seconds_below_none(result: Any) -> None:
    result["stages"][0]["seconds"] = -1.7e308


def no_number(result: Any) -> None:
    result["models"]["purified"]["seconds"] = "NaN"


def no_label(result: Any) -> None:
    result["data"]["labels"][1] = None


def more_labels(result: Any) -> None:
    result["data"]["labels"].append("neutral")


def another_attack(result: Any) -> None:
    """One that the identity knows nothing of, as if its parameters said where something is."""
    result["recipe"]["attack"]["rate"] = 0.1
    result["identified"]["parts"]["attack"]["parameters"] = {}
    result["identified"]["contents"]["attack"] = "0" * 64


def a_part_more(result: Any) -> None:
    """One that takes no labelled rows."""
    result["recipe"]["defense"]["sanitizer"] = {"name": "x"}
    result["identified"]["parts"]["defense.sanitizer"] = {"name": "x", "parameters": {}, "source": "0" * 64}
    result["clean_budget"] = 8


FORGERIES: dict[Callable[[Any], None], str] = {
    no_model: "word, seed 3: it has no model of a defense (expected one of purified, sanitized, filtered)",
    much_memory: "models.purified.peak_memory: Input should be less than or equal to",
    seconds_below_none: "stages.0.seconds: Input should be greater than or equal to 0",
    no_number: "models.purified.seconds: Input should be a finite number",
    no_label: "clean answers with 2 labels, and its data name ",
    more_labels: "clean answers with 2 labels, and its data name negative, positive, neutral",
    another_attack: "attack.rate is not the track's",
    a_part_more: "defense.sanitizer is not the entry's",
}


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forged_cell(forge: Callable[[Any], None], track: Track, row: Path) -> None:
    edit(row / WORD, forge)
    seal(row)
    assert FORGERIES[forge] in wrong(track, row)


def test_rows_after_a_wrong_one_are_checked_and_each_is_told_on_one_short_line(row: Path, track: Track) -> None:
    after = shutil.copytree(row, row.parents[1] / "z/tiny-v1/twelve")
    edit(row / WORD, lambda result: result["models"].update({"a\nright: b\n::error::" + "c" * 9_000: {"metrics": {}}}))
    seal(row)
    out, error = said("check", row, after, "--track", track.document.name)
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["wrong", "right"]
    assert "a\\nright: b\\n::error::" in lines[0]
    assert len(lines[0]) < 1_100
    assert error == "1 of 2 rows are not right"


def test_a_version_that_is_not_told(row: Path, track: Track, tmp_path: Path) -> None:
    edit_all(row, lambda result: result["environment"]["versions"].pop("torch"))
    seal(row)
    build([row], tmp_path / "site", [track.document.name])
    assert ", torch " not in (tmp_path / "site/tiny-v1/twelve.html").read_text()


def test_tensors_that_nobody_asked_for(track: Track, row: Path) -> None:
    replace_answers(row, "word-3", lambda tensors: tensors.update(payload=np.zeros(9)))
    seal(row)
    assert "expected answers, labels and ids, and perhaps targets" in wrong(track, row)


# -- folders and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["other/twelve", "tiny-v1/other", "twelve"])
def test_a_row_in_another_place(folder: str, track: Track, row: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(row, tmp_path / "moved" / folder)
    assert "its folder is no tiny-v1/twelve, as its record has it" in wrong(track, moved)


def test_a_link_to_a_row(track: Track, row: Path, tmp_path: Path) -> None:
    (tmp_path / "linked/tiny-v1").mkdir(parents=True)
    (tmp_path / "linked/tiny-v1/twelve").symlink_to(row)
    assert "it is a link; expected a folder" in wrong(track, tmp_path / "linked/tiny-v1/twelve")
    Checker(track).check(row / "../../tiny-v1/twelve")  # however it is named


def test_code_that_the_entry_does_not_name(track: Track, row: Path) -> None:
    (row / "conftest.py").write_text("raise SystemExit")
    seal(row)
    assert "conftest.py belongs to no cell, and is not the entry's plugin" in wrong(track, row)


@pytest.mark.parametrize("title", ["turned \u202e around", "two\u2028lines", "two\nlines"])
def test_titles_are_one_line_in_one_direction(title: str, track: Track, row: Path) -> None:
    entry = yaml.safe_load((row / "entry.yaml").read_text())
    (row / "entry.yaml").write_text(yaml.safe_dump({**entry, "title": title}))
    seal(row)
    assert "title: string should match pattern" in wrong(track, row)


def test_a_title_is_one_cell_whatever_separates_cells(track: Track, row: Path, tmp_path: Path) -> None:
    entry = yaml.safe_load((row / "entry.yaml").read_text())
    (row / "entry.yaml").write_text(yaml.safe_dump({**entry, "title": "a;=1+cmd|'/C calc'!A0"}))
    seal(row)
    build([row], tmp_path / "site", [track.document.name])
    text = (tmp_path / "site/board.csv").read_text()
    assert "\"a;=1+cmd|'/C calc'!A0\"" in text
    assert next(csv.DictReader(io.StringIO(text)))["name"] == "twelve"


def test_an_entry_that_does_nothing(track: Track, row: Path) -> None:
    entry = yaml.safe_load((row / "entry.yaml").read_text())
    (row / "entry.yaml").write_text(yaml.safe_dump({**entry, "defense": {}}))
    seal(row)
    assert "defense: has neither `purifier:` nor `sanitizer:`: it does nothing" in wrong(track, row)


# -- verifications -----------------------------------------------------------------------------------------------------


def test_a_failure_stays_with_a_row_that_is_changed(track: Track, row: Path) -> None:
    def badge(*verifications: Any) -> str:
        shutil.rmtree(row / "verifications", ignore_errors=True)
        (row / "verifications").mkdir()
        for i, one in enumerate(verifications):
            (row / f"verifications/{i}.json").write_text(one.model_dump_json())
        return score(Checker(track).check(row), Checker(track)).badge(None)

    before = read_row(row).digest
    failed = verified("someone", before, same=False)
    assert badge(failed) == FAILED
    (row / RECORD).write_text((row / RECORD).read_text() + " ")
    assert read_row(row).digest == before  # it is the same record
    edit_all(row, lambda result: result["environment"]["versions"].update(torch="0"))
    seal(row)
    now = read_row(row).digest
    assert now != before
    assert badge(failed) == FAILED
    assert badge(failed, verified("A. Nobody", now)) == FAILED  # its author
    assert badge(failed, verified("somebody else", now)) == THIRD
    assert badge(verified("someone", before)) == SELF  # it says nothing of what the row is now


@pytest.mark.parametrize("differing", [{}, {"plain": 0.0}])
def test_a_verification_has_both_kinds_of_rows(differing: dict[str, float], track: Track, row: Path) -> None:
    (row / "verifications").mkdir()
    one = json.loads(verified("someone", read_row(row).digest).model_dump_json())
    one["cells"][0]["differing"] = differing
    (row / "verifications/a.json").write_text(json.dumps(one))
    assert "no verification (cells.0.differing: Dictionary should have at least 2 items" in wrong(track, row)


@pytest.mark.parametrize("change", [{"on": {f"{i}": "x" for i in range(21)}}, {"on": {"device": "x" * 201}}])
def test_a_verification_is_short(change: dict[str, Any], track: Track, row: Path) -> None:
    (row / "verifications").mkdir()
    one = json.loads(verified("someone", read_row(row).digest).model_dump_json())
    (row / "verifications/a.json").write_text(json.dumps({**one, **change}))
    assert "no verification (on" in wrong(track, row)
