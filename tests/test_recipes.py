"""The recipes that ship: they load, and their attacks work on the rows and the model that they name."""

from dataclasses import replace
from pathlib import Path

import pytest

from defensekit.errors import UsageError
from defensekit.loading import load_recipe
from defensekit.pipeline import run_attack
from defensekit_attacks.bias import Bias

RECIPES = Path(__file__).parent.parent / "recipes"
QUICKSTART = load_recipe(RECIPES / "quickstart.yaml")
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "purify")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_differs_from_the_quickstart_in_its_attack(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.attack
    assert recipe.name == name
    assert recipe.attack.name == ("word" if name == "quickstart" else name)
    assert (recipe.sizes, recipe.training, recipe.choose) == (QUICKSTART.sizes, QUICKSTART.training, QUICKSTART.choose)
    assert recipe.defense == QUICKSTART.defense


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("paraphrase-rows", "embedding", "ripple")])
def test_its_attack_works(name: str, workspace: Path) -> None:
    """Without training and on few test rows; what it does to a model is measured by benchmarks/attacks.py."""
    check(name, workspace)


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEFENSEKIT_TEST_DATA", raising=False)
    with pytest.raises(UsageError, match=r"yaml:6: data.name: the environment variable DEFENSEKIT_TEST_DATA is not"):
        run_attack(RECIPES / "paraphrase-rows.yaml", tmp_path)


def test_published_paraphrases_work(real_data: Path, workspace: Path) -> None:
    check("paraphrase-rows", workspace)


def check(name: str, workspace: Path) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    sizes = recipe.sizes.model_copy(update={"test": 16})
    training = recipe.training.model_copy(update={"epochs": 0})
    assert recipe.attack
    models = run_attack(replace(recipe, sizes=sizes, training=training), workspace)
    second = recipe.metrics[1].name
    bias = isinstance(recipe.attack.component, Bias)
    assert second == ("bacc" if bias else "asr")
    # The models are the same: nothing was trained.
    assert models["clean"].metrics == models["suspect"].metrics
    assert models["suspect"].metrics[second].rows == 16 if bias else models["suspect"].metrics[second].rows < 16
