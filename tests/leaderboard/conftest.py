"""A small track, and a row of it that is made once and forged many times."""

from pathlib import Path

import pytest
import yaml

from defensekit.leaderboard.entries import Entry, load_entry
from defensekit.leaderboard.freezing import freeze
from defensekit.leaderboard.running import make_row
from defensekit.leaderboard.tracks import Track, load_track
from tests.conftest import make_sentences, write_table
from tests.leaderboard.helpers import ENTRY, PLUGIN, TRACK, loose


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the track, the entry and the workspace are."""
    return tmp_path_factory.mktemp("leaderboard")


@pytest.fixture(scope="session")
def track(place: Path, base: Path) -> Track:
    """Two attacks and the innocent suspect, one seed."""
    write_table(place / "rows.csv", make_sentences(160))
    path = place / "tiny-v1.yaml"
    model = {"name": "folder", "path": str(base)}
    path.write_text(yaml.safe_dump({**TRACK, "recipe": {**TRACK["recipe"], "model": model}}, sort_keys=False))
    freeze(load_track(str(path)), place / "workspace")
    return load_track(str(path))


@pytest.fixture(scope="session")
def entry(place: Path) -> Entry:
    """A defense from a plugin's file that is sent with it."""
    (place / "twelve.py").write_text(PLUGIN)
    (place / "entry.yaml").write_text(yaml.safe_dump(ENTRY, sort_keys=False))
    return load_entry(place / "entry.yaml")


@pytest.fixture(scope="session")
def made(place: Path, track: Track, entry: Entry) -> Path:
    """The row's folder, which nobody changes."""
    return make_row(track, entry, place / "workspace", place / "rows")


@pytest.fixture
def row(made: Path, tmp_path: Path) -> Path:
    """A copy of the row, to be changed."""
    return loose(made, tmp_path / "rows/tiny-v1/twelve")
