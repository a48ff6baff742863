"""The commands say what there is of a study."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from defensekit.cli.main import app
from defensekit.utils.errors import UsageError
from tests.conftest import shape
from tests.studies.helpers import model, result, study, write_study


@pytest.mark.slow
def test_the_commands_tell_what_there_is(recipe: Path, tmp_path: Path) -> None:
    path = study(recipe, matrix={"defense.scorer": ["magnitude", "random"]})

    def command(*arguments: str | Path) -> Any:
        return CliRunner().invoke(app, ["study", *map(str, arguments), "-w", str(tmp_path / "w")])

    planned = command("plan", path)
    assert planned.exit_code == 0
    assert "magnitude, seed 0" in planned.stdout
    assert "2 runs, 0 of them finished, 2 to run" in planned.stdout
    assert "there is no estimate yet" in planned.stdout
    assert "no study has run in" in str(command("status", path).exception)
    whole = [sys.executable, "-m", "defensekit", "study", "run", str(path), "-w", str(tmp_path / "w")]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs have a result, 0 of them had one before" in done.stdout
    assert "[2/2] random, seed 0: ACC" in done.stderr
    status = command("status", path)
    assert status.stdout == "small: 2 of 2 runs have a result, 0 failed\nno process is running it\n"
    assert json.loads(command("plan", path, "--json").stdout)["stages"]["to_make"] == {}
    shape(recipe, data__name="none.csv")
    gone = command("run", path).exception
    assert isinstance(gone, UsageError)
    assert "none.csv" in str(gone)


def test_another_study_of_that_name_is_not_shown_in_silence(tmp_path: Path) -> None:
    """Nor what ran before its file was changed."""
    runs: list[Any] = [({"epochs": 1}, 0, result({"purified": model({"acc": 0.5})}))]
    write_study(tmp_path / "w/studies/same", runs, {"epochs": [1]})
    path = tmp_path / "same.yaml"
    for matrix, said in (("{epochs: [1]}", False), ("{epochs: [1, 2]}", True)):
        path.write_text(f"name: same\nrecipe: pico.yaml\nmatrix: {matrix}\n")
        done = CliRunner().invoke(app, ["study", "status", str(path), "-w", str(tmp_path / "w")])
        assert done.exit_code == 0, done.output
        assert ("has another `matrix` than what ran last as same" in done.stderr) is said
