"""A row compared with others on the same test rows, and beside studies."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from defensekit.cli.main import app as main
from defensekit.leaderboard.as_study import studies_of
from defensekit.leaderboard.row import read_row
from defensekit.leaderboard.ties import differences
from defensekit.studies.frame import Finished
from defensekit.studies.report.page import joint_report
from tests.leaderboard.helpers import copied, said
from tests.leaderboard.test_page import made_up
from tests.studies.helpers import model, result, write_study
from tests.studies.report.helpers import texts


def test_differences() -> None:
    rows = [made_up("b", 0.5, 0.8), made_up("a", 0.1, 0.9), made_up("c", 0.25, 0.9)]
    found = differences(rows[2], rows)
    assert [one.name for one in found] == ["a", "b"]
    value, low, high = found[0].excess_asr
    assert value == pytest.approx(0.15)
    assert 0.1 < low < value < high < 0.2
    assert found[1].excess_asr[0] == pytest.approx(-0.25)
    assert found[1].acc[0] == pytest.approx(0.1)
    assert found[0].acc == (0, 0, 0)
    assert all(isinstance(number, float) for number in np.ravel([found[0].excess_asr]))


def test_the_command(row: Path, track: object, place: Path) -> None:
    copied(row, "other")
    options = ("--track", place / "tiny-v1.yaml")
    same = "0.000 (0.000 to 0.000)"
    out, error = said("compare", row, row.parents[1], *options)
    assert (out.splitlines()[0], out.splitlines()[-1], error) == (
        "twelve on tiny-v1, less:",
        f"| other | {same} | {same} |",
        "",
    )
    assert said("compare", row, row, *options) == ("twelve on tiny-v1: there is no other row.\n\n", "")
    assert said("compare", row.parents[1], row, *options)[1].endswith("expected the folder of one row, there are 2")


def test_rows_beside_a_study(made: Path, place: Path, tmp_path: Path) -> None:
    models = {"clean": model({"acc": 0.9, "asr": 0.1}), "purified": model({"acc": 0.75, "asr": 0.25})}
    study = write_study(tmp_path / "w/studies/mine", [({"attack": "word", "defense": "mine"}, 3, result(models))])
    given = [str(study), str(made), "--metric", "asr", "--track", str(place / "tiny-v1.yaml")]
    done = CliRunner().invoke(main, ["study", "report", *given, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "tiny-v1" in (tmp_path / "out/tables.md").read_text()
    rows = studies_of([made], tmp_path / "scratch", [str(place / "tiny-v1.yaml")])
    table = joint_report([Finished(study), *rows], [], metrics=["asr"]).main
    found = texts(table)
    assert table.heads == ("model", "study", "defense")
    asr = read_row(made).cells["word", 3].models["purified"].metrics["asr"].value
    assert found["purified", "mine", "mine"][0] == "0.250"
    [mine] = [
        cells for (model, study, _), cells in found.items() if study == "tiny-v1" and model.startswith("purified")
    ]
    assert mine[0] == f"{asr:.3f}"


def test_rows_of_one_track_are_one_board(row: Path, place: Path, tmp_path: Path) -> None:
    """Each alone, and with attacks that were tried on it."""
    other = copied(row, "other")
    [board] = studies_of([row, other], tmp_path / "scratch", [str(place / "tiny-v1.yaml")])
    assert board.name == "tiny-v1"
    table = joint_report([board], [], ["defense"], ["attack"], ["asr"]).main
    assert table.heads == ("model", "defense")
    assert {key[1:] for key in texts(table) if key[0].startswith("purified")} == {("twelve",), ("other",)}
