"""A row is checked without computing, and a forged one is caught where it can be; else: `test_verifying`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defensekit.leaderboard import row as rows
from defensekit.leaderboard.answers import FOLDER, answers_file
from defensekit.leaderboard.checking import Checker, cost, other_models, unlike
from defensekit.leaderboard.row import RECORD
from defensekit.leaderboard.running import make_row
from defensekit.leaderboard.tracks import Track
from defensekit.result.schema import read_result
from defensekit.utils.errors import DefenseKitError
from tests.conftest import ROOT
from tests.leaderboard.helpers import cells, edit, edit_all, said, seal, wrong

WORD = "cells/word-3.json"


def test_a_row_as_it_was_made(track: Track, row: Path, place: Path) -> None:
    checked = Checker(track).check(row)
    assert list(checked.cells) == [("unpoisoned", 3), ("word", 3)]
    for result in checked.cells.values():
        assert result.models.keys() == {"clean", "suspect", "purified"}
        assert result.clean_budget == 24  # a defense without a rule has no use for rows apart
        assert 0 < (cost(result) or 0) < 60
        forgotten = [stage.model_copy(update={"seconds": None}) for stage in result.stages]
        assert cost(result.model_copy(update={"stages": forgotten})) is None  # and not nothing
    text = "".join(path.read_text() for path in row.rglob("*.json"))
    assert str(place) not in text  # nothing of the machine that made it


def test_made_again_it_is_the_same(track: Track, entry: Any, made: Path, place: Path, tmp_path: Path) -> None:
    before = (made / RECORD).read_bytes()
    again = make_row(track, entry, place / "workspace", tmp_path)
    assert (again / RECORD).read_bytes() == before


def test_an_innocent_suspect_is_the_clean_reference(row: Path) -> None:
    models = json.loads((row / "cells/unpoisoned-3.json").read_text())["models"]
    assert models["suspect"]["metrics"] == models["clean"]["metrics"]


def test_nothing_of_a_row_is_run(track: Track, row: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from defensekit.leaderboard.board import checkers; "
    code += "checkers([sys.argv[1]])(Path(sys.argv[2])).check(Path(sys.argv[2])); sys.exit('torch' in sys.modules)"
    trace = tmp_path / "trace"
    command = [sys.executable, "-c", code, track.document.name, row]
    subprocess.run(command, check=True, env=os.environ | {"TRACE": str(trace)})
    assert not trace.exists()


def test_the_command(track: Track, row: Path) -> None:
    assert said("check", row.parents[1], "--track", track.document.name) == (f"right: {row}\n", "")


# -- what a forger changes, with every digest to fit -------------------------------------------------------------------


def metric(result: Any) -> None:
    result["models"]["purified"]["metrics"]["excess-asr"]["value"] = -0.5


def interval(result: Any) -> None:
    result["models"]["purified"]["metrics"]["acc"]["low"] = 0.99


def reference(result: Any) -> None:
    result["models"]["clean"]["metrics"]["acc"]["value"] = 0.5


def less_metrics(result: Any) -> None:
    del result["models"]["purified"]["metrics"]["pacc"]


def more_models(result: Any) -> None:
    result["models"]["random"] = result["models"]["purified"]


def no_answers(result: Any) -> None:
    del result["models"]["purified"]["predictions"]["triggered"]


def suspects_answers(result: Any) -> None:
    """The clean reference's answers as those of the defense."""
    result["models"]["purified"] |= {key: result["models"]["clean"][key] for key in ("metrics", "predictions")}


def answers_from_nowhere(result: Any) -> None:
    result["models"]["purified"]["predictions"]["triggered"] = "0" * 64


def rate(result: Any) -> None:
    """Another attack, named in recipe and identity alike."""
    for attack in (result["recipe"]["attack"], result["identified"]["parts"]["attack"]["parameters"]):
        attack["rate"] = 0.1


def rate_of_the_recipe(result: Any) -> None:
    result["recipe"]["attack"]["rate"] = 0.1


def more_training(result: Any) -> None:
    for training in (result["recipe"]["training"], result["identified"]["settings"]["training"]):
        training["epochs"] = 9


def more_rows(result: Any) -> None:
    result["recipe"]["data"]["clean"] = result["identified"]["settings"]["sizes"]["clean"] = 40
    result["clean_budget"] = 40


def rows_that_are_not_counted(result: Any) -> None:
    result["clean_budget"] = 8


def fewer_rows(result: Any) -> None:
    result["recipe"]["defense"]["refit"] = result["identified"]["settings"]["refit"] = False
    result["clean_budget"] = 16


def seed(result: Any) -> None:
    result["identified"]["settings"]["seed"] = 4


def data(result: Any) -> None:
    result["identified"]["contents"]["data"] = "0" * 64


def model(result: Any) -> None:
    result["identified"]["contents"]["model"] = "0" * 64


def stage(result: Any) -> None:
    next(stage for stage in result["stages"] if stage["title"] == "poisoned rows")["digest"] = "0" * 64


def oracle(result: Any) -> None:
    result["oracle"] = ["oracle-floor"]


def oracle_rule(result: Any) -> None:
    result["recipe"]["defense"]["choose"] = {"rule": "oracle-floor", "over": "selector.fraction"}


def defense(result: Any) -> None:
    for part in (
        result["recipe"]["defense"]["selector"],
        result["identified"]["parts"]["defense.selector"]["parameters"],
    ):
        part["fraction"] = 0.9


def default(result: Any) -> None:
    """A parameter that the entry leaves to its default."""
    for part in (
        result["recipe"]["defense"]["purifier"][1],
        result["identified"]["parts"]["defense.purifier.1"]["parameters"],
    ):
        part["weight_decay"] = 0.5


def compare(result: Any) -> None:
    result["recipe"]["defense"]["compare"] = {"other": {"scorer": {"name": "random"}}}


def other_model(result: Any) -> None:
    result["identified"]["contents"]["defense.purifier.0"] = "0" * 64


def slow(result: Any) -> None:
    """What is known of its seconds is too much, whatever is not known."""
    for stage in result["stages"]:
        stage["seconds"] = 61.0 if stage["title"] == "purified" else None


def plugin(result: Any) -> None:
    result["recipe"]["plugins"] = ["other.py"]


def requires(result: Any) -> None:
    result["recipe"]["requires"] = ["defensekit-foo==1"]


def source(result: Any) -> None:
    result["identified"]["parts"]["defense.scorer"]["source"] = "0" * 64


def part(result: Any) -> None:
    del result["identified"]["parts"]["defense.scorer"]


def damaged(result: Any) -> None:
    del result["identified"]["settings"]


FORGERIES = {
    metric: "excess-asr of purified is -0.5000 in the row, and ",
    interval: "acc of purified is ",
    reference: "acc of clean is 0.5000 in the row",
    less_metrics: "the metrics of purified are not the track's",
    more_models: "it has the models clean, purified, random, suspect",
    no_answers: "purified has no answers to plain and to triggered rows",
    suspects_answers: "two of its models have the same answers",
    answers_from_nowhere: "the answers of purified to triggered rows are missing",
    rate: "attack.rate is not the track's",
    rate_of_the_recipe: "attack.rate is not 0.3 in the recipe, as the identity says",
    more_training: "training.epochs is not the track's",
    more_rows: "data.clean is not the track's",
    rows_that_are_not_counted: "it used 8 labelled rows, says its recipe 24, allowed 24",
    fewer_rows: "defense.refit is not the entry's",
    seed: "sizes, training, precision or seed differ",
    data: "its base or its data are not the track's",
    model: "its base or its data are not the track's",
    stage: "the rows that it rests on are not the track's",
    oracle: "an oracle chose",
    oracle_rule: "defense.choose is in the recipe alone",
    defense: "defense.selector.fraction is not the entry's",
    default: "its cells are of different defenses",
    compare: "it compares its defense with others",
    other_model: "it used 1 models beside suspect and base, allowed 0",
    slow: "allowed 60",
    plugin: "its plugin is not the entry's",
    requires: "the distribution that it needs is not the entry's",
    source: "it was not made with twelve.py as it is",
    part: "defense.scorer is in the recipe alone",
    damaged: "its record is damaged",
}


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forged_cell(forge: Callable[[Any], None], track: Track, row: Path) -> None:
    edit(row / WORD, forge)
    seal(row)
    assert FORGERIES[forge] in wrong(track, row)


def test_a_forged_identity(track: Track, row: Path) -> None:
    result = json.loads((row / WORD).read_text())
    (row / WORD).write_text(json.dumps(result | {"identity": "0" * 64}))
    seal(row)
    assert "word, seed 3: its identity is not the digest" in wrong(track, row)


def test_a_cell_less_and_a_cell_more(track: Track, row: Path) -> None:
    result = json.loads((row / WORD).read_text())
    (row / WORD).rename(row / "cells/word-4.json")
    seal(row)
    assert "cells/word-4.json is of another cell (attack 'word', seed 3)" in wrong(track, row)
    result["recipe"]["seed"] = 4
    (row / "cells/word-4.json").write_text(json.dumps(result))
    seal(row)
    assert "the cell word, seed 3 is missing" in wrong(track, row)
    assert "the cell word, seed 4 is none of the track's" in list(Checker(track).problems(rows.read_row(row)))


@pytest.mark.parametrize("key", ["track", "track_digest"])
def test_a_row_of_another_track(key: str, track: Track, row: Path) -> None:
    record = json.loads((row / RECORD).read_text())
    (row / RECORD).write_text(json.dumps(record | {key: "f" * 64}))
    assert "its track is" in wrong(track, row)
    message = f"its track {'f' * 64!r} is not known" if key == "track" else "its track is tiny-v1"
    assert message in said("check", row, "--track", track.document.name)[0]


def test_a_record_is_told_on_one_line(row: Path) -> None:
    record = json.loads((row / RECORD).read_text())
    (row / RECORD).write_text(json.dumps(record | {"files": {"cells/word-0.js\n": "no digest"}}))
    with pytest.raises(
        DefenseKitError, match=r"^[^\n]*row.json: files.cells/word-0.js[^\n]*: String should match"
    ) as told:
        rows.record_of(row)
    assert "\n" not in str(told.value)


def test_a_track_that_was_changed(track: Track, row: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-v1.yaml").write_text(Path(track.document.name).read_text() + "\n")
    printed, error = said("check", row, "--track", tmp_path / "tiny-v1.yaml")
    assert printed.startswith(f"wrong: {row}: its track is tiny-v1 ({track.digest[:12]}), expected tiny-v1 (")
    assert error == "1 of 1 rows are not right"


def test_a_plugin_that_was_changed_afterwards(track: Track, row: Path) -> None:
    (row / "twelve.py").write_text("# another\n")
    seal(row)
    assert "it was not made with twelve.py as it is" in wrong(track, row)


def test_another_rows_answers(track: Track, row: Path) -> None:
    key = json.loads((row / WORD).read_text())["models"]["purified"]["predictions"]["triggered"]
    plain = json.loads((row / WORD).read_text())["models"]["purified"]["predictions"]["plain"]
    shutil.copyfile(row / answers_file(plain), row / answers_file(key))
    seal(row)
    assert "purified was asked about other rows than the track's" in wrong(track, row)


def test_answers_of_no_stage(track: Track, row: Path) -> None:
    def forget(result: Any) -> None:
        keys = result["models"]["purified"]["predictions"].values()
        result["stages"] = [stage for stage in result["stages"] if stage["key"] not in keys]

    edit(row / WORD, forget)
    seal(row)
    assert "no stage gave the answers of purified to plain rows" in wrong(track, row)


def test_answers_that_belong_to_nothing(track: Track, row: Path) -> None:
    shutil.copyfile(next((row / FOLDER).iterdir()), row / answers_file("0" * 64))
    seal(row)
    assert f"{answers_file('0' * 64)} belongs to no cell" in wrong(track, row)


def test_a_defense_in_all_cells_that_is_not_the_entrys(track: Track, row: Path) -> None:
    edit_all(row, defense)
    seal(row)
    assert "defense.selector.fraction is not the entry's" in wrong(track, row)


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_unlike() -> None:
    assert list(unlike({"scorer": "a"}, {"scorer": {"name": "a", "p": 1}})) == []
    assert list(unlike({"scorer": {"name": "a", "p": 2}}, {"scorer": {"name": "a", "p": 1}})) == ["scorer.p"]
    assert list(unlike({"steps": ["a", "b"]}, {"steps": [{"name": "a"}]})) == ["steps"]
    assert list(unlike({"steps": ["b"]}, {"steps": [{"name": "a"}]})) == ["steps.0.name"]
    assert list(unlike({"seed": 1}, {})) == ["seed"]


def test_models_beside_suspect_and_base_are_counted(row: Path) -> None:
    result = read_result(cells(row)[0])
    assert other_models(result) == 0
    result.recipe["defense"]["purifier"][0] |= {"models": ["a", "b"]}
    result.identified["contents"]["defense.purifier.0"] = "0" * 64
    assert other_models(result) == 2


def test_tracks_of_ones_own_beside_shipped_ones(row: Path, track: Track, tmp_path: Path) -> None:
    other = tmp_path / "other-v1.yaml"
    other.write_text(Path(track.document.name).read_text().replace("tiny-v1", "other-v1"))
    both = ("--track", other, "--track", track.document.name)
    shipped = ROOT / "leaderboard/rows/pico-v1/nothing"
    assert said("check", row, shipped, *both) == (f"right: {row}\nright: {shipped}\n", "")
    assert "another file is of the track tiny-v1 as well" in said("check", row, *both[2:], *both[2:])[1]
