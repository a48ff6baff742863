"""A row compared with others on the same test rows, by its author and in a pull request."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from defensekit.cli.main import app as main
from defensekit.leaderboard.as_study import studies_of
from defensekit.leaderboard.row import RECORD, read_row
from defensekit.leaderboard.ties import differences
from defensekit.studies.frame import Finished
from defensekit.studies.report.page import joint_report
from tests.conftest import ROOT
from tests.leaderboard.helpers import said, seal
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
    other = shutil.copytree(row, row.parent / "other")
    entry = yaml.safe_load((other / "entry.yaml").read_text())
    (other / "entry.yaml").write_text(yaml.safe_dump({**entry, "name": "other"}))
    (other / RECORD).write_text((other / RECORD).read_text().replace('"entry": "twelve"', '"entry": "other"'))
    seal(other)
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
    rows = studies_of([made], tmp_path / "scratch", str(place / "tiny-v1.yaml"))
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
    other = shutil.copytree(row, row.parent / "other")
    entry = yaml.safe_load((other / "entry.yaml").read_text())
    (other / "entry.yaml").write_text(yaml.safe_dump({**entry, "name": "other"}))
    (other / RECORD).write_text((other / RECORD).read_text().replace('"entry": "twelve"', '"entry": "other"'))
    seal(other)
    [board] = studies_of([row, other], tmp_path / "scratch", str(place / "tiny-v1.yaml"))
    assert board.name == "tiny-v1"
    table = joint_report([board], [], ["defense"], ["attack"], ["asr"]).main
    assert table.heads == ("model", "defense")
    assert {key[1:] for key in texts(table) if key[0].startswith("purified")} == {("twelve",), ("other",)}


# -- what a pull request runs ------------------------------------------------------------------------------------------

STUB = """#!/usr/bin/env bash
echo "$@" >> calls
[[ $2 == compare ]] && echo "compared $3"
[[ $* != *broken* ]]
"""


def run(repository: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=repository, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One with a row that was there before, and `defensekit` that writes down how it was called."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/defensekit").write_text(STUB)
    (tmp_path / ".venv/bin/defensekit").chmod(0o755)
    change(tmp_path, "pico-v1/old/row.json")
    run(tmp_path, "git", "init", "-q")
    commit(tmp_path)
    return tmp_path


def change(repository: Path, *files: str) -> None:
    for file in files:
        path = repository / "leaderboard/rows" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")


def commit(repository: Path) -> str:
    run(repository, "git", "add", "leaderboard")
    run(repository, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "rows")
    return run(repository, "git", "rev-parse", "HEAD").stdout.strip()


def calls(repository: Path, base: str, trusted: str = "false") -> tuple[int, list[str]]:
    script = str(ROOT / ".github/leaderboard.sh")
    done = run(repository, script, BASE=base, SEED="7", TRUSTED=trusted, GITHUB_STEP_SUMMARY="summary")
    called = repository / "calls"
    lines = called.read_text().splitlines() if called.exists() else []
    called.unlink(missing_ok=True)
    return done.returncode, lines


def test_changed_rows_are_run_again(repository: Path) -> None:
    base = commit(repository)
    new = ("pico-v1/new/row.json", "pico-v1/new/mine.py", "pico-v1/new/cells/a.json")
    change(repository, *new, "sst2-minilm-v1/big/row.json", "README.md")
    commit(repository)
    verify, compare = (f"leaderboard {what} leaderboard/rows/pico-v1/new" for what in ("verify", "compare"))
    options = "--by CI --cells 2 --seed 7 --quiet"
    assert calls(repository, base) == (0, [f"{verify} {options}", f"{compare} leaderboard/rows"])
    assert (repository / "summary").read_text() == "compared leaderboard/rows/pico-v1/new\n"
    assert calls(repository, base, "true")[1][0] == f"{verify} {options} --trust mine.py"


def test_one_that_does_not_come_out_again_fails_and_the_others_run(repository: Path) -> None:
    base = commit(repository)
    change(repository, "pico-v1/broken/row.json", "x-on-pico-v1/new/row.json", "x-on-pico-v1/attack.yaml")
    commit(repository)
    code, lines = calls(repository, base)
    assert (code, len(lines)) == (1, 4)
    assert calls(repository, commit(repository)) == (0, [])


def test_the_workflow_calls_what_there_is() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/leaderboard.yml").read_text())["jobs"]
    steps = [step["run"] for step in jobs["rows"]["steps"] if "run" in step]
    assert steps[-1] == ".github/leaderboard.sh"
    for command in ("verify", "compare", "check"):
        assert "Usage" in said(command, "--help")[0]
