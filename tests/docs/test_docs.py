"""What the documentation says is so."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import defensekit
from defensekit.components import KINDS
from defensekit.host.discovery import load_plugins
from defensekit.host.hookspecs import hook_of
from defensekit.recipe.json_schema import recipe_schema
from defensekit.recipe.keys import DefenseKeys, Sizes, Top
from defensekit.recipe.loader import load_recipe
from defensekit.training import TrainingSettings
from tests.conftest import ROOT

DOCS = ROOT / "docs"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_first_plugin_runs(recipe: Path, tmp_path: Path) -> None:
    code = blocks(DOCS / "tutorial.md", "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 13  # with the file's name
    (recipe.parent / "mine.py").write_text(code)
    text = recipe.read_text().replace("scorer: diffusion", "scorer: {name: sharpness, exponent: 0.5}")
    text = text.replace("epochs: 8", "epochs: 1").replace("train: 240", "train: 48")
    recipe.write_text("plugins: [mine.py]\n" + text)
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.recipe["defense"]["scorer"] == {"name": "sharpness", "exponent": 0.5}


def test_every_hook_and_component_and_key_is_documented() -> None:
    plugins, recipes = (DOCS / "plugins.md").read_text(), (DOCS / "recipes.md").read_text()
    for kind in KINDS:
        assert f"`{hook_of(kind)}`" in plugins
    host = load_plugins()
    for kind in ("attack", "estimator", "scorer", "selector", "purifier", "filter", "detector", "rule", "metric"):
        for name in host.names(kind):
            assert f"`{name}`" in recipes, name
    for model in (Top, Sizes, DefenseKeys, TrainingSettings):
        for key in model.model_fields:
            assert f"`{key}`" in recipes, key


def test_every_parameter_of_an_attack_is_documented() -> None:
    page, host = (DOCS / "attacks.md").read_text(), load_plugins()
    for name in host.names("attack"):
        for key in (name, *host.find("attack", name).model_fields):
            assert f"`{key}`" in page, f"{name}: {key}"


def script(path: Path) -> ModuleType:
    """A script that makes a part of the pages."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gallery_is_what_the_attacks_give() -> None:
    module = script(ROOT / "benchmarks/gallery.py")
    page = module.PAGE.read_text()
    shown = page.partition(module.START)[2].partition(module.END)[0]
    assert shown.strip() == module.gallery().strip(), "run: python benchmarks/gallery.py --write"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return script(DOCS / "generate.py")


def test_what_is_generated_is_fresh(generate: ModuleType) -> None:
    for page in DOCS.rglob("*.md"):
        text = page.read_text()
        assert generate.refreshed(text) == text, f"{page} is stale; run: python docs/generate.py --write"


@pytest.mark.parametrize("kind", KINDS)
def test_every_hook_has_a_page_with_its_signature(kind: str, generate: ModuleType) -> None:
    text = (DOCS / f"hooks/{hook_of(kind).removeprefix('defensekit_')}.md").read_text()
    assert f"<!-- generated: hook {kind} -->" in text
    assert f"\n@hookimpl\ndef {hook_of(kind)}() -> Table: ...\n" in text
    for name, method in vars(KINDS[kind]).items():
        if getattr(method, "__isabstractmethod__", False):
            assert f"def {name}(" in text, name


@pytest.mark.parametrize(
    ("page", "classes"),
    [
        ("hooks/filters", "FilterContext RowFeatures Row TrainingSettings"),
        ("hooks/purifiers", "ModelStepContext FoundTrigger TrainingSettings Row TensorView"),
        ("hooks/attacks", "AttackContext Truncation Row TrainingSettings"),
        ("hooks/datasets", "Dataset Row"),
        ("hooks/estimators", "EstimatorContext Row"),
        ("hooks/selectors", "Scores Scored Cut"),
        ("reference/dk", "Evaluation Result Data Pair Statistics PairScores Selection"),
    ],
)
def test_a_page_shows_the_types_that_its_readers_meet(page: str, classes: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    for name in classes.split():
        assert len(re.findall(rf"^class {name}\b", text, flags=re.MULTILINE)) == 1, name


def test_a_stale_page_is_seen(generate: ModuleType) -> None:
    text = (DOCS / "hooks/scorers.md").read_text()
    stale = text.replace("def score(self, t:", "def score(self, tensor:")
    assert stale != text
    assert generate.refreshed(stale) == text


def test_the_reference_has_every_key_of_the_schema() -> None:
    page, recipe = (DOCS / "reference/recipe.md").read_text(), recipe_schema(load_plugins())["else"]
    assert recipe["properties"]
    defense = recipe["properties"]["defense"]
    parts = [recipe["properties"]["training"], recipe["properties"]["triggered"]]
    stages = [defense["then"], defense["else"]["then"], defense["else"]["else"]]  # input, training, weights
    for part in (recipe, *parts, *stages):
        for key in part["properties"]:
            assert f"\n- `{key}` (" in page, key


def test_the_reference_has_every_name_of_the_python_api() -> None:
    page = (DOCS / "reference/dk.md").read_text()
    assert re.findall(r"^## `dk\.(\w+)`$", page, re.MULTILINE) == defensekit.__all__


def test_a_docstring_becomes_markdown(generate: ModuleType) -> None:
    def example() -> None:
        """What it does, to ``x``.

        Args:
            one, two: both
                of them.

        Returns:
            Nothing.

        Raises:
            UsageError: never.
        """

    lines = ["What it does, to `x`.", "", "**Args**", "", "- `one`, `two`: both of them.", ""]
    lines += ["**Returns**: Nothing.", "", "**Raises**", "", "- `UsageError`: never."]
    assert generate._docstring(example).splitlines() == lines


def test_the_readme_explains_the_recipe_that_ships() -> None:
    shipped = load_recipe(ROOT / "recipes/quickstart.yaml")
    [text] = blocks(ROOT / "README.md", "yaml")
    assert text == (ROOT / "recipes/quickstart.yaml").read_text()
    assert shipped.name == "quickstart"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 900
