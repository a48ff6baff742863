"""Whole runs give the same numbers wherever their stages are executed."""

import os
from pathlib import Path
from typing import Any

import pytest

import defensekit
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import DefenseKitError
from tests.conftest import shape
from tests.plugins.executors.helpers import RAY, Watching, parameters, run, small

EXTRA = """
from defensekit.api import Dataset, DatasetSource, Row, hookimpl


class Extra(DatasetSource):
    def load(self):
        return Dataset(("negative", "positive"), [Row(i, f"row {i}", i % 2) for i in range(40)])

    def contents(self, say):
        return "extra"


@hookimpl
def defensekit_datasets():
    return {"extra": Extra}
"""


@pytest.mark.slow
def test_a_plugin_that_is_on_the_driver_alone_is_named(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In earnest: a distribution that this process has imported, and its workers can't, or have in another version."""
    for number, site in enumerate(("here", "there"), 1):
        (tmp_path / site).mkdir()
        (tmp_path / site / "extra_rows.py").write_text(f"VERSION = {number}\n{EXTRA}")
        info = tmp_path / site / f"extra_rows-{number}.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: extra-rows\nVersion: {number}.0\n")
        (info / "entry_points.txt").write_text("[defensekit]\nextra = extra_rows\n")
    small(recipe, executor={"name": "local", "workers": 1})
    shape(recipe, data__name="extra", data__train=8, data__clean=2, data__dev=2, data__test=4)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "here")
        loaded = load_recipe(recipe)
        assert loaded.data.name == "extra"
    named = rf"plugin 'extra' \(extra-rows 1.0\) on {os.uname().nodename}"
    with pytest.raises(DefenseKitError, match=rf"the dataset 'extra' needs {named}; install it there"):
        defensekit.run(loaded, tmp_path / "w")
    monkeypatch.syspath_prepend(tmp_path / "there")
    there = r"plugin 'extra' \(extra-rows 2.0\)"
    with pytest.raises(DefenseKitError, match=rf"source of {named} is not .*\({there} is there now\)"):
        defensekit.run(loaded, tmp_path / "w")


@pytest.mark.parametrize("kind", ["local", RAY])
@pytest.mark.slow
def test_the_numbers_are_those_of_one_process(
    request: pytest.FixtureRequest, expected: tuple[Path, dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    recipe, wanted = expected
    watching = Watching()
    found = run(recipe, tmp_path, watching, kind, **parameters(kind, request))
    assert found == wanted
    assert ("purified", 1, 3) in watching._seen
