"""What tests of studies start from."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import shape
from tests.studies.helpers import ATTACK, SCORER, ended, write_study


@pytest.fixture
def recipe(recipe: Path) -> Path:
    """The tiny BERT's recipe, small enough to be run many times."""
    return shape(recipe, data__train=48, data__test=24, data__clean=16, training__epochs=1, defense__choose=None)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two scorers against two attacks with three seeds; one run failed, one is missing, one cell was left out."""
    runs: list[Any] = []
    for attack, step in (("word", 0.0), ("sentence", 0.1)):
        for seed in range(3):
            runs.append(({SCORER: "diffusion", ATTACK: attack}, seed, ended(0.8 + 0.01 * seed, 0.2 + step)))
    runs.append(({SCORER: "random", ATTACK: "word"}, 0, ended(0.7, 0.5, oracle=["oracle-floor"], chosen=0.5)))
    runs.append(({SCORER: "random", ATTACK: "word"}, 1, "out of memory"))
    runs.append(({SCORER: "random", ATTACK: "word"}, 2, None))
    return write_study(tmp_path / "studies" / "two", runs)
