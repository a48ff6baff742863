"""Several studies in one table: a run says which study it is of, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from defensekit.cli.main import app
from defensekit.studies.frame import Finished
from defensekit.studies.joining import Joined
from defensekit.studies.report.page import joint_report
from defensekit.studies.report.pivot import pivot
from defensekit.utils.errors import UsageError
from tests.studies.helpers import model, result, write_study
from tests.studies.report.helpers import texts, wide


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """A study of scorers, and one of a defense that has another axis and one of the attacks."""
    models = {"clean": model({"acc": 0.7, "asr": 0.2}), "suspect": model({"acc": 0.6, "asr": 0.9})}
    runs = [
        ({"attack": "word", "epochs": epochs}, seed, result({**models, "purified": model({"acc": 0.5, "asr": asr})}))
        for epochs, asr in ((1, 0.4), (2, 0.3))
        for seed in range(3)
    ]
    write_study(tmp_path / "workspace/studies/other", runs, {"attack": ["word"], "epochs": {"1": {}, "2": {}}})
    return [wide(tmp_path), tmp_path / "workspace/studies/other"]


def test_numbers_are_those_of_each_study(places: list[Path]) -> None:
    studies = [Finished(place) for place in places]
    table = joint_report(studies, places, metrics=["asr"]).main
    assert table.heads == ("model", "study", "defense.scorer", "epochs")
    columns = [(column.group, column.title) for column in table.columns]
    assert columns == [("word", "ASR"), ("sentence", "ASR"), ("", "seconds"), ("", "memory, MiB")]
    found = texts(table)
    alone = texts(pivot(studies[0], metrics=["asr"]))
    for scorer in "abc":
        assert found["purified", "made-up", scorer, "as the recipe"] == alone["purified", scorer]
    assert found["purified", "other", "as the recipe", "1"][:2] == ["0.400 ± 0.000", "–"]
    assert found["suspect", "made-up", "–", "–"][0] == "1.000 ± 0.000"
    assert found["suspect", "other", "–", "–"][0] == "0.900 ± 0.000"


def test_a_study_of_one_attack_stands_under_its_name(places: list[Path], tmp_path: Path) -> None:
    made = result({"purified": model({"asr": 0.5})}).model_copy(update={"recipe": {"attack": {"name": "word"}}})
    runs: list[Any] = [({}, seed, made) for seed in range(2)]
    alone = write_study(tmp_path / "workspace/studies/alone", runs, {})
    given = [places[0], alone]
    table = joint_report([Finished(place) for place in given], given, metrics=["asr"]).main
    assert table.columns[0].group == "word"
    assert texts(table)["purified", "alone", "as the recipe"][:2] == ["0.500 ± 0.000 (n=2)", "–"]


def test_what_is_lost_of_each_is_said(places: list[Path]) -> None:
    joined = Joined([Finished(place) for place in places])
    assert [len(joined.runs), len(joined.done), len(joined.failures)] == [24, 22, 1]
    assert len(joined.frame["run"].unique()) == 24


def test_the_command(places: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["study", "report", *map(str, places), "--metric", "asr", "--cols", "study"])
    assert done.exit_code == 0, done.output
    assert "other" in done.output
    assert "report:" not in done.output
    out = ["--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, ["study", "report", *map(str, places), *out]).exit_code == 0
    assert f"study report {places[0]} {places[1]} --model purified</pre>" in (tmp_path / "out/report.html").read_text()
    assert "| other |" in (tmp_path / "out/tables.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((0,), "two of them are called 'made-up'"),
        ((1, "--against", "b"), "--against compares the defenses of one study"),
        ((1, "--where", "scorer=b"), "there is no axis 'scorer'"),
    ],
)
def test_what_can_not_be_joined(more: tuple[int | str, ...], message: str, places: list[Path]) -> None:
    given = [str(places[one]) if isinstance(one, int) else one for one in more]
    done = CliRunner().invoke(app, ["study", "report", str(places[0]), *given])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
