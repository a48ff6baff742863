"""Local plugins travel with what was run: a run's folder is run elsewhere, a study's result when the file is gone."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import defensekit
from defensekit.recipe.loader import load_recipe
from defensekit.studies.loading import load_study
from defensekit.studies.rerun import rerun
from defensekit.studies.running import run_study
from defensekit.utils.errors import UsageError
from defensekit.utils.files import file_digest, literal_path
from tests.conftest import shape
from tests.studies.helpers import numbers, study
from tests.studies.test_rerun import forged

MINE = """
from defensekit.api import hookimpl, scorer

@scorer()
def mine(t):
    "|delta|."
    return t.drift.abs()

@hookimpl
def defensekit_scorers():
    return {"mine": mine}
"""


def local(recipe: Path, *files: Path) -> Path:
    """A small recipe whose scorer is in a file of its own."""
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(MINE if file is files[0] else MINE.replace('{"mine": mine}', "{}"))
    names = [literal_path(file.relative_to(recipe.parent)) for file in files]
    return shape(recipe, plugins=names, defense__scorer="mine", defense__compare={})


@pytest.mark.parametrize("more", [(), ("other/$mine.py",)])
def test_a_runs_folder_is_run_elsewhere(recipe: Path, warm: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    there = tmp_path / "there"
    there.mkdir()
    before = defensekit.run(local(recipe, tmp_path / "$mine.py", *(tmp_path / name for name in more)), warm)
    shutil.copytree(before.folder, there / "copied")
    shutil.rmtree(before.folder)
    (tmp_path / "$mine.py").unlink()
    again = load_recipe(there / "copied/recipe.yaml")
    assert [path.is_relative_to(there / "copied/plugins") for path in again.plugins] == [True] * (1 + len(more))
    after = defensekit.run(there / "copied/recipe.yaml", warm)
    assert numbers(after) == numbers(before)
    assert after.identity == before.identity
    assert all(stage.reused for stage in after.stages)  # no key has a path of it


@pytest.mark.slow
@pytest.mark.usefixtures("own_steps")
def test_a_studys_result_is_repeated_by_the_copy_that_was_run(
    recipe: Path, base: Path, warm: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    local(recipe, mine)
    found = run_study(load_study(study(recipe, matrix={"defense.scorer": ["mine"]})), warm)
    kept = found.folder / "plugins" / file_digest(mine)[:16] / "mine.py"
    assert kept.read_text() == MINE
    mine.write_text(MINE.replace("abs()", "square()"))
    run_study(
        load_study(study(recipe, matrix={"defense.scorer": ["mine"]})), warm
    )  # the study goes on with another version
    assert kept.read_text() == MINE
    assert len([*found.folder.glob("plugins/*/mine.py")]) == 2
    shutil.copytree(found.folder, tmp_path / "copied")
    mine.unlink()
    files = [*(tmp_path / "copied/results").glob("*.json")]
    [file] = [one for one in files if file_digest(kept) in one.read_text()]
    trusted = [str(base), str(tmp_path / "rows.csv")]
    copy = tmp_path / "copied" / kept.relative_to(found.folder)
    with pytest.raises(UsageError, match=re.escape(f"--trust '{copy}'")):
        rerun(file, tmp_path / "fresh", trusted=[*trusted, str(mine)])
    again = rerun(file, tmp_path / "fresh", trusted=[*trusted, str(copy)])
    assert again.same
    assert again.after.identity == again.before.identity


def claimed(tmp_path: Path, source: Any, **more: Any) -> Path:
    """A stranger's result that names a plugin which is not there."""
    path = forged(tmp_path, plugins=[str(tmp_path / "gone/mine.py")])
    data = json.loads(path.read_text())
    data["identified"] = {"parts": {"defense.scorer": {"source": source}, "metrics.0": 3}, **more}
    (tmp_path / "s/results").mkdir(parents=True)
    (tmp_path / "s/results/r.json").write_text(json.dumps(data))
    return tmp_path / "s/results/r.json"


@pytest.mark.parametrize("changed", [False, True])
def test_a_copy_is_taken_only_by_its_digest(tmp_path: Path, changed: bool) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    digest = file_digest(tmp_path / "mine.py")
    copy = tmp_path / "s/plugins" / digest[:16] / "mine.py"
    path = claimed(tmp_path, digest)
    copy.parent.mkdir(parents=True)
    copy.write_text(MINE + "# changed" * changed)
    asked = tmp_path / "gone/mine.py" if changed else copy
    with pytest.raises(UsageError, match=re.escape(f"--trust '{asked}'")):
        rerun(path, tmp_path / "w")


@pytest.mark.parametrize("source", [None, 3, ["x"], "../../../../mine.py", "x" * 64])
def test_what_is_no_digest_finds_no_copy(tmp_path: Path, source: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--trust '{tmp_path}/gone/mine.py'")):
        rerun(claimed(tmp_path, source), tmp_path / "w")
    path = claimed(tmp_path / "s", source, parts=[source])
    with pytest.raises(UsageError, match=re.escape(f"--trust '{tmp_path}/s/gone/mine.py'")):
        rerun(path, tmp_path / "w")
