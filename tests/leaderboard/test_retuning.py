"""A track may ask what comes back after the attacker's further training: a row has those models, and a column."""

import json
from pathlib import Path

import pytest
import yaml

from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.entries import Entry
from defensekit.leaderboard.freezing import freeze
from defensekit.leaderboard.page import COLUMNS, build
from defensekit.leaderboard.row import read_row
from defensekit.leaderboard.running import make_row
from defensekit.leaderboard.scores import score
from defensekit.leaderboard.tracks import Track, load_track
from tests.leaderboard.helpers import TRACK, loose, seal, wrong

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def retuning(place: Path, base: Path, track: Track) -> Track:
    """The small track, whose attacker comes back with five rows."""
    recipe = {**TRACK["recipe"], "model": {"name": "folder", "path": str(base)}, "retuning": {"rows": [5], "epochs": 2}}
    path = place / "back-v1.yaml"
    path.write_text(yaml.safe_dump({**TRACK, "name": "back-v1", "recipe": recipe}, sort_keys=False))
    freeze(load_track(str(path)), place / "workspace")
    return load_track(str(path))


def test_a_row_has_what_came_back(place: Path, retuning: Track, entry: Entry, tmp_path: Path) -> None:
    row = make_row(retuning, entry, place / "workspace", tmp_path)
    checker = Checker(retuning)
    numbers = score(checker.check(row), checker).numbers()
    cells = read_row(row).cells
    attacked, innocent = cells["word", 3], cells["unpoisoned", 3]
    assert {"clean, retuned on 5", "purified, retuned on 5"} < attacked.models.keys()
    assert "from-base, retuned on 5" not in attacked.models  # another entry's
    assert not any("retuned" in name for name in innocent.models)
    assert numbers["asr_retuned_5"] == attacked.models["purified, retuned on 5"].metrics["asr"].value
    assert numbers["asr_retuned_20"] is None
    assert numbers.keys() <= COLUMNS.keys()
    build([row], tmp_path / "site", [str(retuning.path)])
    [record] = json.loads((tmp_path / "site/board.json").read_text())
    innocent_asr = attacked.models["clean, retuned on 5"].metrics["asr"].value
    assert record["asr_clean_retuned_5"] == innocent_asr
    assert f"<small>{innocent_asr:.3f}</small>" in (tmp_path / "site/index.html").read_text()
    forged = loose(row, tmp_path / "forged/back-v1/twelve")
    file = forged / "cells/word-3.json"
    cell = json.loads(file.read_text())
    cell["models"]["purified, retuned on 5"]["metrics"]["asr"]["value"] = 0.123
    file.write_text(json.dumps(cell))
    seal(forged)
    assert "asr of purified, retuned on 5 is 0.1230 in the row" in wrong(retuning, forged)
    del cell["models"]["purified, retuned on 5"]
    file.write_text(json.dumps(cell))
    seal(forged)
    assert "purified, retuned on 5" in wrong(retuning, forged)
