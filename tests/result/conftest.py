"""A run that is shown in several ways."""

from pathlib import Path

import pytest

import defensekit
from defensekit.result.schema import Result
from tests.conftest import RECIPE, make_sentences, write_table


@pytest.fixture(scope="package")
def result(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Result:
    folder = tmp_path_factory.mktemp("reported")
    write_table(folder / "rows.csv", make_sentences(400))
    (folder / "pico.yaml").write_text(RECIPE.format(base=base))
    return defensekit.run(folder / "pico.yaml", folder / "workspace")
