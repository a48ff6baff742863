"""The shipped rows of the smallest track are those of the code as it is: a cell of each comes out again."""

from pathlib import Path

import pytest

from defensekit.leaderboard.board import checkers
from defensekit.leaderboard.row import read_row
from defensekit.leaderboard.running import make_row
from defensekit.leaderboard.verifying import _compared

SHIPPED = Path(__file__).parents[2] / "leaderboard/rows/pico-v1"
CELL = ("word", 0)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.mark.slow
@pytest.mark.usefixtures("own_steps")
@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.iterdir()))
def test_a_shipped_row_comes_out_again(name: str, workspace: Path, tmp_path: Path) -> None:
    checker = checkers()(SHIPPED / name)
    row = checker.check(SHIPPED / name)
    again = read_row(make_row(checker.track, row.entry, workspace, tmp_path, cells=[CELL]))
    compared = _compared(CELL, row, again)
    assert not compared.inputs
    assert max(compared.differing.values()) <= checker.track.keys.tolerance.answers, "run `make board`"
