"""A run that is shown in several ways."""

import shutil
from pathlib import Path

import pytest

import defensekit
from defensekit.result.schema import Result


@pytest.fixture(scope="session")
def result(finished: tuple[Path, Path, Result], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The result of the run in a folder of its own, which pages and cards are written into."""
    recipe, workspace, _ = finished
    own = tmp_path_factory.mktemp("shown")
    shutil.copytree(workspace / "store", own / "store")
    return defensekit.run(recipe, own)
