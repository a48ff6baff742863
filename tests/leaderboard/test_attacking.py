"""An attack is submitted, with code of its own, and tried on a row; what it leaves more of is on the row's page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from defensekit.leaderboard import verifying
from defensekit.leaderboard.attacking import attempts_on, entries_of, try_attack
from defensekit.leaderboard.board import checkers
from defensekit.leaderboard.entries import Entry, load_attack
from defensekit.leaderboard.freezing import HEADING, check_frozen
from defensekit.leaderboard.row import Row, read_row
from defensekit.leaderboard.scores import EXCESS, SELF, THIRD, Scores, score
from defensekit.leaderboard.tracks import Track, attacked
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.leaderboard.helpers import ENTRY, edit, loose, said, seal, wrong
from tests.leaderboard.test_page import verified
from tests.leaderboard.test_site import EVIL

ATTACK: dict[str, Any] = {
    **{key: ENTRY[key] for key in ("about", "links", "licence")},
    "name": "shout",
    "title": f"Shouting {EVIL}",
    "authors": ["B. Rowdy"],
    "plugin": {"file": "shouting.py"},
    "attack": {"name": "shout", "target": "positive"},
}
PLUGIN = '''\
from dataclasses import replace

from defensekit.api import Attack, Field, hookimpl, label_number


class Shout(Attack):
    """A word in front of half the rows."""

    target: str | int = Field(description="the label that is wanted")

    def aim(self):
        return self.target

    def poison(self, rows, context):
        marked = [replace(row, label=label_number(self.target, context.labels)) for row in self.trigger(rows, context)]
        return [marked[i] if i % 2 else row for i, row in enumerate(rows)]

    def trigger(self, rows, context):
        return [row.with_text(f"hey {row.text}") for row in rows]


@hookimpl
def defensekit_attacks():
    return {"shout": Shout}
'''
TRUST = ("twelve.py",)


@pytest.fixture(scope="session")
def file(place: Path) -> Path:
    """The attack as its author has it."""
    (place / "shouting.py").write_text(PLUGIN)
    (place / "attack.yaml").write_text(yaml.safe_dump(ATTACK, sort_keys=False))
    return place / "attack.yaml"


@pytest.fixture(scope="session")
def attempted(place: Path, track: Track, entry: Entry, made: Path, file: Path) -> Path:
    """The attack's folder, with a row."""
    before = file.read_bytes()
    folder = try_attack(track, file, entries_of(track, [made]), place / "workspace", place / "attempts", trust=TRUST)
    assert file.read_bytes() == before
    return folder


@pytest.fixture
def board(made: Path, attempted: Path, tmp_path: Path) -> Path:
    """A copy of the row and of what the attack did to it, to be changed."""
    loose(made, tmp_path / "rows/tiny-v1/twelve")
    shutil.copytree(attempted, tmp_path / "rows" / attempted.name, ignore=lambda *_: {made.name})
    loose(attempted / made.name, tmp_path / "rows" / attempted.name / made.name)
    return tmp_path / "rows"


@pytest.fixture
def tried(track: Track, board: Path) -> Track:
    """The track with the attack, as the board has it."""
    return attacked(track, load_attack(board / "shout-on-tiny-v1/attack.yaml"))


ROW = "shout-on-tiny-v1/twelve"


def test_it_is_a_row_like_any_other(track: Track, board: Path, place: Path) -> None:
    row = checkers([track.document.name])(board / ROW).check(board / ROW)
    assert list(row.cells) == [("shout", 3)]
    assert row.record.track == "shout-on-tiny-v1"
    assert said("check", board, "--track", track.document.name)[0].count("right: ") == 2
    assert str(place) not in "".join(path.read_text() for path in (board / ROW).rglob("*.json"))
    assert {path.name for path in (board / ROW).parent.iterdir()} == {"attack.yaml", "shouting.py", "twelve"}


def test_two_attacks_of_one_name(track: Track, board: Path, tmp_path: Path) -> None:
    other = shutil.copytree(board / "shout-on-tiny-v1", tmp_path / "other/shout-on-tiny-v1")
    (other / "attack.yaml").write_text((other / "attack.yaml").read_text() + "# another\n")
    row = json.loads((other / "twelve/row.json").read_text())
    digest = attacked(track, load_attack(other / "attack.yaml")).digest
    (other / "twelve/row.json").write_text(json.dumps(row | {"track_digest": digest}))
    assert said("check", other, "--track", track.document.name)[1] == ""
    error = said("build", board, other, "--out", tmp_path / "site", "--track", track.document.name)[1]
    assert error.endswith("there is another attack of that name, with rows on shout-on-tiny-v1")


def test_what_is_forged(track: Track, tried: Track, board: Path) -> None:
    row, attack = board / ROW, board / "shout-on-tiny-v1/attack.yaml"

    def other(result: Any) -> None:
        for where in (result["recipe"]["attack"], result["identified"]["parts"]["attack"]["parameters"]):
            where["target"] = "negative"

    cell = (row / "cells/shout-3.json").read_text()
    edit(row / "cells/shout-3.json", other)
    seal(row)
    assert "attack.target is not the track's" in wrong(tried, row)
    (row / "cells/shout-3.json").write_text(cell)
    edit(row / "cells/shout-3.json", lambda result: result["recipe"].update(plugins=["twelve.py"]))
    seal(row)
    assert "its plugin is not the entry's" in wrong(tried, row)
    (row / "cells/shout-3.json").write_text(cell)
    seal(row)
    (board / "shout-on-tiny-v1/shouting.py").write_text(PLUGIN + "\n")
    assert "it was not made with shouting.py as it is" in wrong(tried, row)
    attack.write_text(attack.read_text().replace("target: positive", "target: negative"))
    message = said("check", row, "--track", track.document.name)[0]
    assert "its track is shout-on-tiny-v1" in message


def test_digests_of_another_track(track: Track, tried: Track, board: Path, place: Path) -> None:
    attack = board / "shout-on-tiny-v1/attack.yaml"
    before, text = yaml.safe_load(attack.read_text()), attack.read_text()
    assert text.count(HEADING) == 1
    for change, message in (
        ({"data": "0" * 64}, "its base or its data are not those of tiny-v1"),
        ({"rows": {"word": []}}, "digests.rows: expected 1 of each of shout; `leaderboard attack` writes them again"),
    ):
        attack.write_text(yaml.safe_dump({**before, "digests": {**before["digests"], **change}}))
        with pytest.raises(UsageError, match=message):
            attacked(track, load_attack(attack))
    attack.write_text(text.replace(before["digests"]["rows"]["shout"][0], "f" * 64))
    with pytest.raises(DefenseKitError, match="the rows of shout, seed 3, are not those of shout-on-tiny-v1"):
        check_frozen(attacked(track, load_attack(attack)), tried.cells, place / "workspace")
    attack.write_text(text.replace("name: shout\ntitle", "name: word\ntitle"))
    with pytest.raises(UsageError, match="name: is the name of an attack of tiny-v1"):
        attacked(track, load_attack(attack))


def test_another_attack_of_that_name(track: Track, file: Path, made: Path, attempted: Path, tmp_path: Path) -> None:
    shutil.copy(file.with_name("shouting.py"), tmp_path)
    (tmp_path / "attack.yaml").write_text(file.read_text().replace("MIT", "BSD"))
    arguments = (track.document.name, tmp_path / "attack.yaml", made, "--rows", attempted.parent)
    assert "runs twelve.py, code of others" in said("attack", *arguments)[1]
    assert "has another attack of this name" in said("attack", *arguments, "--trust", "twelve.py")[1]
    for name, written in {"shouting.py": "mine", "notes.txt": "mine"}.items():
        folder = tmp_path / f"rows-{name}" / "shout-on-tiny-v1"
        folder.mkdir(parents=True)
        (folder / name).write_text(written)
        elsewhere = (*arguments[:-1], folder.parent, "--trust", "twelve.py")
        assert "is there and has no attack.yaml with rows beside it" in said("attack", *elsewhere)[1]
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, written)]
    nothing = said("attack", "pico-v1", *arguments[1:])[1]
    assert nothing == f"{made} has no row on pico-v1"


def test_it_runs_again(track: Track, tried: Track, board: Path, place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """What `verify` runs is the same command, with the digests as they stand."""
    commands = []

    def ran(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("defensekit.leaderboard.verifying.subprocess.run", ran)
    one = "{name: local, workers: 1}"
    verifying.repeat(tried, read_row(board / ROW), tried.cells, place / "workspace", tmp_path, one)
    assert commands[-1][commands[-1].index("--executor") + 1] == one
    words = commands[-1][commands[-1].index("leaderboard") + 1 :]
    assert "error" not in said(*words)[1]
    assert (tmp_path / "rows" / ROW / "row.json").read_bytes() == (board / ROW / "row.json").read_bytes()


def test_verifying_a_row_runs_the_attack_in_the_other_process_alone(
    tried: Track, board: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeat(track: Track, row: Row, cells: Any, workspace: Path, scratch: Path, executor: str | None) -> bool:
        assert not workspace.exists()  # nothing was made of its rows here, nor taken from the workspace that is given
        shutil.copytree(board / track.name, scratch / "rows" / track.name)
        return True

    monkeypatch.setattr(verifying, "repeat", repeat)
    monkeypatch.setattr(verifying, "check_frozen", lambda *_: pytest.fail("its rows were made here"))
    given: Any = {"cells": 1, "seed": 0, "by": "A. Keeper", "workspace": place / "workspace"}
    with pytest.raises(UsageError, match=r"say `--trust shouting\.py`"):
        verifying.verify(tried, board / ROW, trust=TRUST, **given)
    assert verifying.verify(tried, board / ROW, trust=(*TRUST, "shouting.py"), **given).same


# -- on the board ------------------------------------------------------------------------------------------------------


def scored(track: Track, board: Path) -> dict[str, dict[str, Scores]]:
    checker = checkers([track.document.name])
    folders = [board / "tiny-v1/twelve", board / ROW]
    found = [score(checker(folder).check(folder), checker(folder)) for folder in folders]
    return {one.track.name: {one.name: one} for one in found}


@pytest.mark.parametrize(("left", "clean", "lowers"), [(1.0, 0.0, True), (1.0, 1.0, False), (0.0, 0.0, False)])
def test_a_row_is_lowered_by_what_the_attack_did(
    left: float, clean: float, lowers: bool, track: Track, board: Path
) -> None:
    """What turns the clean reference as well is no backdoor that was left."""
    scores = scored(track, board)
    one = scores["shout-on-tiny-v1"]["twelve"]
    cell = ("shout", 3)
    rows = len(one.reference[cell])
    made_up = replace(
        one, paired={EXCESS: {cell: pd.Series([left] * rows)}}, reference={cell: pd.Series([clean] * rows)}
    )  # the worst of the track is below 1 here
    worst = scores["tiny-v1"]["twelve"].numbers()["excess_asr_worst"]
    assert worst is not None
    assert worst < 1
    on = next(iter(scores["tiny-v1"].values())).track
    made_up = replace(made_up, track=replace(one.track, of=on))
    [found] = attempts_on(on, {**scores, "shout-on-tiny-v1": {"twelve": made_up}})
    assert (found.lowers, found.interval) == (lowers, (left - clean, left - clean))


def test_the_pages(track: Track, board: Path, tmp_path: Path) -> None:
    one = verified("a reader", read_row(board / ROW).digest)
    one = one.model_copy(update={"cells": [one.cells[0].model_copy(update={"attack": "shout"})]})
    (board / ROW / "verifications").mkdir()
    (board / ROW / "verifications/a.json").write_text(one.model_dump_json())
    out = tmp_path / "site"
    assert said("build", board, "--out", out, "--track", track.document.name) == (f"page: {out / 'index.html'}\n", "")
    pages = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*.html")}
    attacks = {"shout", "word", "unpoisoned"}
    assert pages.keys() == {"index.html", "tiny-v1/twelve.html", *(f"tiny-v1/attacks/{name}.html" for name in attacks)}
    for page, text in pages.items():
        assert EVIL not in text
        assert "BACC" not in text  # it has no bias to be measured on
        for link in (part.split('"')[0] for part in text.split('href="')[1:]):
            if not link.startswith(("https:", "data:", "#")):
                assert ((out / page).parent / link.partition("#")[0]).is_file()
    assert "B. Rowdy" in pages["tiny-v1/attacks/shout.html"]
    assert "name: shout" in pages["tiny-v1/attacks/shout.html"]
    assert THIRD in pages["tiny-v1/attacks/shout.html"]
    assert "words:\n- cf" in pages["tiny-v1/attacks/word.html"]
    [record] = json.loads((out / "board.json").read_text())
    assert (record["track"], record["badge"]) == ("tiny-v1", SELF)
    lowered = record["lowered_by"] == "shout"
    assert ("Lowered by" in pages["tiny-v1/twelve.html"]) == lowered
    assert ('▼ lowered by <a href="tiny-v1/attacks/shout.html">' in pages["index.html"]) == lowered
    [attempt] = record["attempts"]
    assert (attempt["attack"], attempt["lowers"], attempt["badge"]) == ("shout", lowered, THIRD)
    assert {cell["attack"] for cell in attempt["cells"]} == {"shout"}
    cells = [line.split(",") for line in (out / "cells.csv").read_text().replace('"', "").splitlines()]
    assert {(one[1], one[3]): one[2] for one in cells[1:]}["twelve", "shout"] == "True"


def test_an_attack_on_another_entry_is_no_mark_on_the_row(track: Track, board: Path, tmp_path: Path) -> None:
    entry = board / "tiny-v1/twelve/entry.yaml"
    entry.write_text(entry.read_text().replace("MIT", "BSD"))
    seal(board / "tiny-v1/twelve")
    arguments = ("--out", tmp_path / "site", "--track", track.document.name)
    assert "is another one; remove it, and run the attack again" in said("build", board, *arguments)[1]
    assert "there is no row of twelve on tiny-v1" in said("build", board / ROW, *arguments)[1]
