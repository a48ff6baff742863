"""A row is run again from its file alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from defensekit.result.schema import read_result
from defensekit.studies.loading import load_study
from defensekit.studies.rerun import differences, rerun
from defensekit.studies.running import run_study
from defensekit.utils.errors import UsageError
from tests.studies.helpers import study


def test_a_row_is_run_again_from_its_file_alone(recipe: Path, tmp_path: Path) -> None:
    found = run_study(load_study(study(recipe, matrix={"defense.scorer": ["magnitude"]})), tmp_path / "w")
    [file] = (found.folder / "results").glob("*.json")
    copy = tmp_path / "row.json"
    copy.write_text(file.read_text())
    mine = tmp_path / "fresh" / f"{json.loads(copy.read_text())['name']}.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    again = rerun(copy, tmp_path / "fresh")
    assert again.same
    assert mine.read_text() == "mine"
    assert again.after.identity == again.before.identity
    forged = json.loads(copy.read_text())
    forged["models"]["purified"]["metrics"]["acc"]["value"] += 0.25
    forged["summary"]["purified"]["asr"] = 0.0
    forged["metrics"]["asr"]["floor"] = 0.9
    forged |= {"clean_budget": 1, "oracle": ["oracle-floor"], "identity": "0" * 64}
    forged["stages"][0]["digest"] = "0" * 64
    copy.write_text(json.dumps(forged))
    other = rerun(copy, tmp_path / "fresh")
    assert [place for place, _, _ in other.inputs] == ["identity"]
    assert {place for place, _, _ in other.numbers} == {
        "models.purified.metrics.acc.value", "summary.purified.asr", "metrics.asr.floor", "clean_budget", "oracle",
    }  # fmt: skip
    assert [place for place, _, _ in other.stages] == [forged["stages"][0]["title"]]
    assert not other.same
    for part in ("inputs", "numbers", "stages"):  # each is enough
        assert not replace(again, **{part: getattr(other, part)}).same


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is no result's file"), ("[]", "is no result's file"), ("name: s", r"a study's are in .*/results/"),
     ('{"schema_version": 1}', "schema_version 1, expected 4"),
     ('{"schema_version": 4}', "no result: name: Field required")],
)  # fmt: skip
def test_what_is_no_result_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "row.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_result(tmp_path / "row.json")


def test_differences_name_their_place() -> None:
    assert list(differences({"a": [1, {"b": 2}], "c": 0}, {"a": [1, {"b": 3}]})) == [("a.1.b", 2, 3), ("c", 0, None)]
