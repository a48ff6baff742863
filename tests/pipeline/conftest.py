"""One run of the tiny recipe, for all that look at what a run leaves."""

from pathlib import Path

import pytest

import defensekit
from defensekit.result.schema import Result
from tests.conftest import RECIPE, make_sentences, write_table


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, Path, Result]:
    """(recipe, workspace, result) of one run."""
    folder = tmp_path_factory.mktemp("finished")
    write_table(folder / "rows.csv", make_sentences(400))
    (folder / "pico.yaml").write_text(RECIPE.format(base=base))
    return folder / "pico.yaml", folder / "workspace", defensekit.run(folder / "pico.yaml", folder / "workspace")
