"""What tests of studies start from."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import defensekit
from tests.conftest import shape, write_recipe
from tests.studies.helpers import ATTACK, SCORER, ended, write_study

SMALL = {"data__train": 48, "data__test": 24, "data__clean": 16, "training__epochs": 1, "defense__choose": None}


@pytest.fixture
def recipe(recipe: Path) -> Path:
    """The tiny BERT's recipe, small enough to be run many times."""
    return shape(recipe, **SMALL)


@pytest.fixture
def lean(recipe: Path) -> Path:
    """That recipe with one model beside the suspect and its references, and no other training."""
    return shape(recipe, defense__purifier=["reset"], defense__compare={})


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A store with the suspect and the references of the lean recipe, and a purified model of a scorer of no test."""
    folder = tmp_path_factory.mktemp("references")
    recipe = shape(write_recipe(folder, base), **SMALL, defense__purifier=["reset"], defense__compare={})
    defensekit.run(shape(recipe, defense__scorer="spectral"), folder / "w")
    return folder / "w/store"


@pytest.fixture
def warm(references: Path, tmp_path: Path) -> Path:
    """A workspace in which suspect and references are, for tests of what comes after them."""
    shutil.copytree(references, tmp_path / "w/store")
    return tmp_path / "w"


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
