"""`defensekit study report` and `export`: what is printed and what is written."""

import re
import shlex
from pathlib import Path

import pandas
import pytest
from typer.testing import CliRunner

from defensekit.cli.main import app
from defensekit.utils.errors import UsageError
from tests.studies.helpers import id_of
from tests.studies.report.helpers import wide


@pytest.fixture
def commands() -> CliRunner:
    return CliRunner()


def test_report_prints_the_table_and_writes_the_rest(commands: CliRunner, tmp_path: Path) -> None:
    place = wide(tmp_path)
    asked = ["study", "report", str(place), "--rows", "attack", "--cols", "defense.scorer", "--metric", "acc"]
    asked += [
        "--metric",
        "asr",
        "--model",
        "suspect",
        "--model",
        "purified",
        "--where",
        "attack=word",
        "--against",
        "b",
    ]
    done = commands.invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert f"<pre>{shlex.join(['defensekit', *asked])}</pre>" in (place / "report.html").read_text()
    assert re.search(r"purified +word +0\.\d{3} ± ", done.output)
    assert "oracle" in done.output
    assert f"report: {place / 'report.html'}" in done.output
    assert {"report.html", "tables.md", "tables.tex", "plots"} <= {path.name for path in place.iterdir()}


def test_a_study_may_be_named_by_its_yaml(commands: CliRunner, tmp_path: Path) -> None:
    wide(tmp_path)
    (tmp_path / "made-up.yaml").write_text("name: made-up\nrecipe: nowhere.yaml\n")
    out = tmp_path / "out"
    workspace = ["--workspace", str(tmp_path / "workspace")]
    done = commands.invoke(app, ["study", "export", str(tmp_path / "made-up.yaml"), "--out", str(out), *workspace])
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(out / "results.csv"), str(out / "results.parquet")]
    frame = pandas.read_parquet(out / "results.parquet")
    assert len(frame) == 16 * (3 * 2 + 4 * 2) + 2
    assert id_of({"defense.scorer": "a", "attack": "word"}, 0) in set(frame[frame.state == "missing"].run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "{}/workspace/studies/made"], r"no study has run in .*/made\. Did you mean '.*/made-up'\?"),
        (["report", "{}/other.yaml"], r"no study has run in workspace/studies/other \(--workspace says where it ran\)"),
        (["report", "{}/othr.yaml"], r"there is no study .*/othr\.yaml\. Did you mean '.*/other\.yaml'\?"),
        (["status", "{}/recipe.yaml"], r"recipe\.yaml: this is a recipe: `defensekit run` runs it"),
        (["run", "{}/other.yaml", "--resume", "alway"], r"^resume: 'alway'\? Did you mean 'always'\?"),
        (["rerun", "{}/other.yaml"], r"other\.yaml is no result's file.*/results/"),
        (["report", "{}/bad.yaml"], "is no study: it has no `name:`"),
        (["report", "{}/out.yaml"], "names no study"),
        (["report", "{}/workspace/studies/made-up", "--rows", "attak"], "no axis 'attak'. Did you mean 'attack'"),
        (["report", "{}/workspace/studies/made-up", "--where", "attack"], "expected AXIS=VALUE"),
        (["report", "{}/workspace/studies/made-up", "--against", "d"], r"no defense 'd'.*defenses: a, b, c"),
    ],
)
def test_mistakes_are_told(commands: CliRunner, tmp_path: Path, arguments: list[str], message: str) -> None:
    wide(tmp_path)
    (tmp_path / "other.yaml").write_text("name: other\n")
    (tmp_path / "bad.yaml").write_text("recipe: x\n")
    (tmp_path / "recipe.yaml").write_text("name: r\nmodel: x\n")
    (tmp_path / "out.yaml").write_text("name: ../../..\n")
    done = commands.invoke(app, ["study", *(argument.format(tmp_path) for argument in arguments)])
    assert isinstance(done.exception, UsageError)
    assert re.search(message, str(done.exception))
