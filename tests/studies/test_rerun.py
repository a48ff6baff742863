"""A row is run again from its file alone."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from defensekit.components import Observer
from defensekit.result.schema import read_result
from defensekit.studies.again import _followed
from defensekit.studies.loading import load_study
from defensekit.studies.rerun import differences, rerun
from defensekit.studies.running import run_study
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.studies.helpers import study


@pytest.mark.slow
@pytest.mark.usefixtures("own_steps")
def test_a_row_is_run_again_from_its_file_alone(recipe: Path, base: Path, tmp_path: Path) -> None:
    found = run_study(load_study(study(recipe, matrix={"defense.scorer": ["magnitude"]})), tmp_path / "w")
    [file] = (found.folder / "results").glob("*.json")
    copy = tmp_path / "row.json"
    copy.write_text(file.read_text())
    mine = tmp_path / "fresh" / f"{json.loads(copy.read_text())['name']}.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    trusted = [str(base), str(tmp_path / "rows.csv")]
    again = rerun(copy, tmp_path / "fresh", trusted=trusted)
    assert again.same
    assert mine.read_text() == "mine"
    assert again.after.identity == again.before.identity
    forged = json.loads(copy.read_text())
    forged["models"]["purified"]["metrics"]["acc"]["value"] += 0.25
    forged["summary"]["purified"]["asr"] = 0.0
    forged["metrics"]["asr"]["floor"] = 0.9
    forged |= {"clean_budget": 1, "oracle": ["oracle-floor"], "identity": "0" * 64}
    forged["stages"][0]["digest"] = "0" * 64
    forged["examples"] = [again.after.examples[0].model_dump() | {"text": "made up"}]
    forged["environment"]["plugins"] = []
    left_out = forged["stages"].pop()
    copy.write_text(json.dumps(forged))
    other = rerun(copy, tmp_path / "fresh", trusted=trusted)
    assert [place for place, _, _ in other.inputs] == ["identity"]
    assert {place for place, _, _ in other.numbers} == {
        "models.purified.metrics.acc.value", "summary.purified.asr", "metrics.asr.floor", "clean_budget", "oracle",
        "examples.0.text",
    }  # fmt: skip
    assert [place for place, _, _ in other.stages] == [forged["stages"][0]["title"], left_out["title"]]
    assert [place for place, _, _ in other.surroundings] == ["plugins"]
    assert not other.same
    for part in ("inputs", "numbers", "stages"):  # each is enough
        assert not replace(again, **{part: getattr(other, part)}).same


class Noting(Observer):
    """Keeps what is said."""

    said: list[str]

    def message(self, text: str) -> None:
        self.said.append(text)


def forged(tmp_path: Path, **recipe: object) -> Path:
    """A stranger's result, whose recipe has keys of their choice."""
    data = {
        "schema_version": 4, "name": "r", "identity": "", "identified": {}, "oracle": [], "summary": {}, "models": {},
        "test_rows": {}, "metrics": {}, "clean_budget": 0, "chosen": None, "curve": [], "examples": [], "attack": None,
        "data": {}, "statistics": None, "warnings": [], "stages": [], "seconds": 0, "folder": "",
        "environment": {"python": "", "versions": {}, "plugins": [], "device": "", "device_name": "", "threads": 1,
                        "platform": ""},
        "recipe": {
            "name": "r", "model": "minilm", "data": "movie-reviews",
            "attack": {"name": "word", "target": 1, "words": ["cf"], "rate": 0.1},
            "defense": {"scorer": "magnitude", "selector": "fraction", "purifier": ["reset"]},
            **recipe,
        },
    }  # fmt: skip
    path = tmp_path / "result.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"extends": "/etc/passwd"}, "has `extends`"),
        ({"executor": {"name": "ray", "address": "ray://host:1"}}, "the executor ray; to use it, add --trust 'ray'"),
    ],
)
def test_what_a_result_has_no_use_for_is_refused(tmp_path: Path, recipe: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        rerun(forged(tmp_path, **recipe), tmp_path / "w")


def test_a_strangers_plugin_is_loaded_by_name_alone_and_never_here(tmp_path: Path) -> None:
    plugin, ran = tmp_path / "evil.py", tmp_path / "ran"
    plugin.write_text(f"import os; open({str(ran)!r}, 'w').write(str(os.getpid())); import nowhere")
    path = forged(tmp_path, plugins=[str(plugin)])
    with pytest.raises(UsageError, match=re.escape(f"--trust '{plugin}'")):
        rerun(path, tmp_path / "w")
    assert not ran.exists()
    noting = Noting(said=[])
    with pytest.raises(UsageError, match="nowhere"):
        rerun(path, tmp_path / "w", [noting], [str(plugin)])
    assert noting.said[0].startswith(f"loading the plugin file {plugin}")
    assert int(ran.read_text()) != os.getpid()


@pytest.mark.parametrize("answer", ["x", "[]", '["unheard"]', '["planned", 1]', ""])
def test_a_process_that_sends_what_is_no_event(answer: str) -> None:
    with pytest.raises(DefenseKitError, match="the process of the run"):
        _followed(io.BytesIO(answer.encode()), [])


def test_a_result_is_a_regular_file_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="no regular file"):
            read_result(path)
    monkeypatch.setattr("defensekit.result.schema.LARGEST", 100)
    with pytest.raises(UsageError, match="more than 100 bytes"):
        read_result(forged(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is no result's file"), ("[]", "is no result's file"),
     ("[" * 100_000, "is no result's file"), ("name: s", r"a study's are in .*/results/"),
     ('{"schema_version": 1}', "schema_version 1, expected 4"),
     ('{"schema_version": 4}', "no result: name: Field required"),
     ('{"schema_version": 4, "identified": {"a": NaN}}', "NaN or infinity"),
     ('{"schema_version": 4, "recipe": {"a": 1e999}}', "NaN or infinity")],
)  # fmt: skip
def test_what_is_no_result_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "row.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_result(tmp_path / "row.json")


def test_differences_name_their_place() -> None:
    assert list(differences({"a": [1, {"b": 2}], "c": 0}, {"a": [1, {"b": 3}]})) == [("a.1.b", 2, 3), ("c", 0, None)]
