"""What decides numbers is a run's identity, and nothing else is."""

import json
import shutil
from pathlib import Path

import pytest

import defensekit
from defensekit.pipeline.identity import IDENTITY, NOT_IDENTITY, identified, identity
from defensekit.pipeline.preflight import survey
from defensekit.recipe.keys import DefenseKeys, InputDefenseKeys, Keys, Top, TrainingDefenseKeys, TriggeredKeys
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.recipe import Recipe
from tests.conftest import shape


@pytest.fixture
def recipe(recipe: Path) -> Path:
    """The tiny BERT's recipe, small enough to be run many times."""
    return shape(recipe, data__train=48, data__test=24, data__clean=16, training__epochs=1, defense__choose=None)


def test_every_key_of_a_recipe_is_identity_or_is_not() -> None:
    inner: dict[str, tuple[type[Keys], ...]] = {
        "defense": (DefenseKeys, InputDefenseKeys, TrainingDefenseKeys),
        "triggered": (TriggeredKeys,),
    }
    keys = Top.model_fields.keys() - inner.keys()
    keys |= {f"{key}.{name}" for key, parts in inner.items() for part in parts for name in part.model_fields}
    assert keys == IDENTITY | NOT_IDENTITY
    assert not IDENTITY & NOT_IDENTITY


def test_a_runs_identity_is_the_same_before_and_after_and_elsewhere(recipe: Path, tmp_path: Path) -> None:
    before = identity(identified(survey(load_recipe(recipe), lambda text: None)))
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.identity == before == identity(json.loads(result.model_dump_json())["identified"])
    assert str(tmp_path) not in json.dumps(result.identified)
    elsewhere = shutil.copytree(load_recipe(recipe).model.parameters()["path"], tmp_path / "elsewhere")
    assert identity(identified(survey(load_recipe(recipe, f"model={elsewhere}"), lambda text: None))) == before
    renamed = shape(recipe, name="other", observers=[])
    assert identity(identified(survey(load_recipe(renamed), lambda text: None))) == before


def test_a_comparison_may_have_any_name(recipe: Path) -> None:
    """A name that reads like a part of the defense takes nothing for that part."""
    names = ("a.purifier.b", "b.sanitizer.model", "detectors.0.model")
    path = shape(recipe, defense__compare={name: {"scorer": "magnitude"} for name in names})
    found = identified(survey(load_recipe(path), lambda text: None))
    assert {f"defense.compare.{name}.scorer" for name in names} <= found["parts"].keys()


def test_every_key_reaches_the_recipe() -> None:
    assert Top.model_fields.keys() - {"extends"} <= Recipe.__dataclass_fields__.keys()


SETTINGS = [
    "seed=1", "data.clean=17", "data.max_length=31", "attack.rate=0.3", "training.epochs=2", "metrics=[acc]",
    "defense.scorer=magnitude", "defense.compare={}", "defense.purifier=[reset]", "precision=bfloat16",
    "defense.detectors=[strip]", "retuning={rows: [3]}", "baselines=false",
]  # fmt: skip


def test_a_setting_of_every_key_that_is_identity_is_tried() -> None:
    of_contents = {"model", "suspect", "triggered"}  # what is in their files is identity
    tried = {setting.partition("=")[0].partition(".")[0] for setting in SETTINGS}
    assert {key.partition(".")[0] for key in IDENTITY} == tried | of_contents


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_decides_numbers_is_identity(recipe: Path, setting: str) -> None:
    def known(*settings: str) -> str:
        return identity(identified(survey(load_recipe(recipe, settings), lambda text: None)))

    assert known(setting) != known()
    before = load_recipe(recipe, setting).before_defense != load_recipe(recipe).before_defense
    assert before != setting.startswith(("defense.", "baselines"))  # runs of a study share stages by it
    assert load_recipe(recipe, setting).resolved() != load_recipe(recipe).resolved()
