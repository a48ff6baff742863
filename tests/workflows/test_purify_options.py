"""What `purify` writes where nothing is found, and whose defense it takes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from defensekit.cli.main import main
from defensekit.result.schema import Result
from defensekit.utils.errors import UsageError
from defensekit.workflows.purify import purify_into, recipe_for
from defensekit.workflows.purify_model import purify_model
from tests.conftest import ROOT, make_sentences, write_table
from tests.workflows.test_purify import HALF

OWN = """
from defensekit.api import Scorer, hookimpl

class Mine(Scorer):
    def score(self, t):
        return t.drift.abs()

@hookimpl
def defensekit_scorers():
    return {"mine": Mine}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_table(tmp_path / "rows.csv", make_sentences(150))


def test_where_nothing_is_found_the_suspect_may_stay_as_it_was(
    finished: tuple[Path, Path, Result], base: Path, tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    innocent = shutil.copytree(finished[2].files("clean reference"), tmp_path / "innocent")
    places = ["--base", str(base), "--suspect", str(innocent), "--clean", str(rows), "-w", str(tmp_path / "w"), "-q"]
    step = "{name: unlearn-triggers, epochs: 4, learning_rate: 0.003, batch_size: 16}"
    quick = [f"defense.purifier=[{step}]", "data.max_length=32"]
    settings = [part for setting in quick for part in ("--set", setting)]
    said = {}
    for out, keep in (("purified", []), ("kept", ["--keep-if-clean"])):
        command = ["defensekit", "purify", *places, *settings, "--out", str(tmp_path / out), *keep]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        said[out] = capsys.readouterr().out
        assert said[out].startswith("No word was found that turns the suspect's answers")
    assert "--keep-if-clean keeps the suspect as it was" in said["purified"]
    assert said["kept"].endswith(f"the suspect as it was: {tmp_path / 'kept'}\n")
    same = {path.name: path.read_bytes() == (tmp_path / "kept" / path.name).read_bytes() for path in innocent.iterdir()}
    assert set(same.values()) == {True}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == same.keys() | {"README.md", "manifest.json"}
    manifest = json.loads((tmp_path / "kept/manifest.json").read_text())
    assert manifest["files"].keys() == same.keys() | {"README.md"}
    assert "the suspect as it was, byte for byte" in (tmp_path / "kept/README.md").read_text()
    result = json.loads(next((tmp_path / "w/runs").glob("*/result.json")).read_text())
    assert result["verdict"]["removed"] is None
    purify_into(tmp_path / "kept", recipe_for(str(base), innocent, str(rows), settings=quick), tmp_path / "w", (), True)
    weights = tmp_path / "kept/model.safetensors"
    os.truncate(weights, 100)
    for gone in (False, True):
        recipe = recipe_for(str(base), innocent, str(rows), settings=quick)
        with pytest.raises(UsageError, match=r"but model\.safetensors is changed or gone; remove it"):
            purify_into(tmp_path / "kept", recipe, tmp_path / "w", (), True)
        if not gone:
            weights.unlink()
    with pytest.raises(UsageError, match="--keep-if-clean: no step of the defense searches"):
        purify_into(tmp_path / "x", recipe_for(str(base), innocent, str(rows), settings=HALF), tmp_path / "w", (), True)


def test_an_entry_of_a_leaderboard_gives_its_defense(tmp_path: Path, base: Path, suspect: Path, rows: Path) -> None:
    """With the code that is sent with it, and as many rows as without."""
    entry = ROOT / "leaderboard/entries/minilm/fine-mixing.yaml"
    recipe = recipe_for(str(base), suspect, str(rows), entry, ["data.max_length=32"])
    assert [step.name for step in recipe.defense.purifier] == ["reset", "fine-tune"]
    assert recipe.choose
    assert recipe.sizes.clean == recipe_for(str(base), suspect, str(rows)).sizes.clean // 2
    (tmp_path / "mine.py").write_text(OWN)
    own = {
        "plugin": {"file": "mine.py"},
        "defense": {"scorer": "mine", "selector": "gamma-mixture", "purifier": ["reset"]},
    }
    (tmp_path / "entry.yaml").write_text(yaml.safe_dump({"name": "mine", "title": "Mine", **own}))
    recipe = recipe_for(str(base), suspect, str(rows), tmp_path / "entry.yaml")
    assert recipe.defense.scorer
    assert recipe.defense.scorer.name == "mine"
    (tmp_path / "entry.yaml").write_text(yaml.safe_dump({**own, "defense": {"scorrer": "mine"}}))
    with pytest.raises(UsageError, match=r"entry.yaml:2: defense.scorrer: unknown key. Did you mean 'scorer'"):
        recipe_for(str(base), suspect, str(rows), tmp_path / "entry.yaml")


def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path: Path, base: Path, rows: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, said in {
        "dangling": "dangling is a link that leads to nothing",
        "rows.csv": "rows.csv is a file",
        "rows.csv/x": "rows.csv is a file",
        "/proc/nope": "nothing can be written into /proc",
    }.items():
        with pytest.raises(UsageError, match=said):  # before anything is read: there is no such suspect
            purify_model(base, tmp_path / "no suspect", tmp_path / name, rows)


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path, base: Path, suspect: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    purify_model(base, suspect, tmp_path / "link")
    assert (tmp_path / "real/model.safetensors").is_file()
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(UsageError, match="already exists; name a new folder"):
        purify_model(base, suspect, tmp_path / "link")
