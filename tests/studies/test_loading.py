"""A study's file: what its matrix means, and mistakes with their place."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from defensekit.recipe.loader import load_recipe
from defensekit.studies.loading import label_of, load_study
from defensekit.utils.errors import UsageError
from tests.conftest import ROOT, shape
from tests.studies.helpers import study


def test_every_combination_is_a_run_and_some_are_taken_out_or_put_beside(recipe: Path) -> None:
    path = study(
        recipe,
        matrix={
            "defense.scorer": ["magnitude", {"name": "diffusion", "exponent": 2}],
            "attack": {
                "word": {"attack.rate": 0.1},
                "sentence": {"attack": {"name": "sentence", "rate": 0.2, "target": "negative"}, "training.epochs": 2},
            },
        },
        exclude=[{"defense.scorer": "magnitude", "attack": "sentence"}],
        include=[{"attack": "word", "defense.scorer": "random"}, {"defense.selector.fraction": 0.75}],
        seeds=[0, 7],
    )
    rows = load_study(path).runs
    assert [str(row) for row in rows] == [
        "magnitude, word, seed 0", "magnitude, word, seed 7",
        "diffusion(exponent=2), word, seed 0", "diffusion(exponent=2), word, seed 7",
        "diffusion(exponent=2), sentence, seed 0", "diffusion(exponent=2), sentence, seed 7",
        "random, word, seed 0", "random, word, seed 7",
        "0.75, seed 0", "0.75, seed 7",
    ]  # fmt: skip
    sentence = rows[4].recipe
    assert sentence.attack is not None
    assert (sentence.attack.name, sentence.training.epochs) == ("sentence", 2)
    assert sentence.defense.scorer is not None
    assert sentence.defense.scorer.parameters()["exponent"] == 2.0
    assert (rows[-1].recipe.defense.scorer.name, rows[-1].recipe.seed) == ("diffusion", 7)
    # A run is the recipe that a person would have written.
    by_hand = load_recipe(recipe, ["defense.scorer.exponent=2", "attack.rate=0.1", "seed=7"])
    assert rows[3].recipe.resolved() == by_hand.resolved()


@pytest.mark.parametrize("order", [("defense.choose", "defense.scorer"), ("defense.scorer", "defense.choose")])
def test_a_variant_takes_a_key_back_wherever_it_says_so(recipe: Path, order: tuple[str, str]) -> None:
    shape(recipe, defense__choose={"rule": "accuracy-floor", "values": [0.5]})
    changes = {"defense.choose": None, "defense.scorer": "magnitude"}
    path = study(recipe, matrix={"how": {"fixed": {key: changes[key] for key in order}}})
    [row] = load_study(path).runs
    assert (row.recipe.choose, row.recipe.defense.scorer and row.recipe.defense.scorer.name) == (None, "magnitude")


def test_a_recipe_may_stand_in_the_study_and_a_matrix_may_be_missing(recipe: Path) -> None:
    inline = yaml.safe_load(recipe.read_text())
    del inline["name"]
    path = study(recipe, recipe=inline, matrix={})
    [row] = load_study(path, "seeds=[3]").runs
    assert (row.recipe.name, row.recipe.seed, row.axes) == ("small", 3, {})


LONG = ("training.epochs", "data.clean", "data.dev")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"matrx": {}}, r"study.yaml:\d+: matrx: unknown key. Did you mean 'matrix'"),
        ({"recipe": "pico.yml"}, r"study.yaml:\d+: recipe: there is no file .*Did you mean 'pico.yaml'"),
        ({"recipe": "9" * 300}, r"^[^\n]*study.yaml:\d+: recipe: File name too long: [^\n]*$"),
        ({"matrix": {"defense.scorer": ["diffusoin"]}}, r"study.yaml:\d+: defense.scorer.*'diffusion'.*in the run"),
        ({"matrix": {"defense.scorer": []}}, r"study.yaml:\d+: matrix.defense.scorer: an axis needs values"),
        ({"matrix": {"seed": [0, 1]}}, r"'seed' is no axis: `seeds:` says"),
        ({"matrix": {"a": {"b": {"executor": "local"}}}}, r"matrix.a.b.executor: 'executor' is no axis"),
        ({"matrix": {"defense.scorer": ["random", "random"]}}, "two values are called 'random'"),
        ({"matrix": {}, "exclude": [{"defense.scorer": "random"}]}, "exclude.0.defense.scorer: there is no such axis"),
        ({"exclude": [{}]}, r"study.yaml:\d+: exclude: every run of the matrix is left out"),
        ({"exclude": [{"defense.scorr": "random"}]}, r"exclude.0.defense.scorr: there is no such axis. Did you mean"),
        ({"exclude": [{"defense.scorer": "magnitud"}]}, r"there is no value 'magnitud'. Did you mean 'magnitude'"),
        ({"include": [{"defense.scorer": "diffusion", "defense.selector.fraction": 0.5}]}, "is duplicated"),
        ({"executor": "lokal"}, r"study.yaml:\d+: executor.*Did you mean 'local'"),
        ({"keep": "all"}, r"study.yaml:\d+: keep: "),
        ({"seeds": []}, r"study.yaml:\d+: seeds: "),
        ({"seeds": [0, -1]}, r"study.yaml:\d+: seeds.1: "),
        ({"seeds": [3, 0, 3]}, r"study.yaml:\d+: seeds.2: 3 is duplicated"),
        ({"recipe": {"extends": "pico.yaml"}}, r"study.yaml:\d+: recipe.extends: .*name it here"),
        ({"matrix": {key: [*range(1, 1001)] for key in LONG}}, r"1,000,000,000 combinations of axes and seeds"),
    ],
)  # fmt: skip
def test_mistakes_in_a_study_are_told_with_their_place(recipe: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_study(study(recipe, **keys))


@pytest.mark.parametrize("text", ["", "- a\n", "a\n"])
def test_a_file_without_keys_is_no_study(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"study.yaml:1: expected a mapping with the keys name, "):
        load_study(tmp_path / "study.yaml")


def test_a_recipe_is_no_study(recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"pico.yaml:1: this is a recipe: `defensekit run` runs it"):
        load_study(recipe)


def test_an_axis_that_the_rule_chooses_is_refused(recipe: Path) -> None:
    chosen = {"rule": "accuracy-floor", "values": [0.5]}
    shaped = shape(recipe, defense__choose=chosen)
    with pytest.raises(UsageError, match=r"matrix.defense.selector.fraction: the rule 'accuracy-floor' chooses this"):
        load_study(study(shaped))
    load_study(study(shaped, matrix={"defense.choose.max_drop": [0.01, 0.02]}))


def test_a_setting_reaches_an_axis_whose_name_has_dots(recipe: Path) -> None:
    named = {"plain": {"defense.scorer": "random"}, "two": {"defense.scorer": "magnitude"}}
    path = study(recipe, matrix={"defense.scorer": ["magnitude"], "attack.rate": [0.1]})

    def axes(*settings: str) -> dict[str, list[Any]]:
        return {axis: list(values) for axis, values in load_study(path, settings).axes.items()}

    assert axes("matrix.defense.scorer=[random, magnitude]")["defense.scorer"] == ["random", "magnitude"]
    assert axes("matrix.defense.scorer=[random]")["attack.rate"] == [0.1]
    assert axes("matrix.training.epochs=[1, 2]")["training.epochs"] == [1, 2]  # an axis that the file has not
    path = study(recipe, matrix={"how.much": named})
    assert axes("matrix.how.much.plain={defense.scorer: inverse-magnitude}")["how.much"] == ["plain", "two"]
    assert axes("matrix={attack.rate: [0.3]}")["attack.rate"] == [0.3]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("reset", "reset"),
        (0.5, 0.5),
        ({"name": "fine-tune", "epochs": 2}, "fine-tune(epochs=2)"),
        (["reset", {"name": "fine-tune"}], "reset + fine-tune"),
        (None, "none"),
    ],
)
def test_values_have_short_names(value: Any, label: Any) -> None:
    assert label_of(value) == label


@pytest.mark.parametrize(
    ("name", "runs"), [("scorers", 63), ("estimators", 81), ("scopes", 36), ("purifiers", 54), ("defense", 36)]
)
def test_studies_that_ship_load(name: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    rows = load_study(ROOT / "studies" / f"{name}.yaml").runs
    assert len(rows) == runs
    assert {str(row.axes["attack"]) for row in rows} == {"word", "sentence", "syntactic"}


def test_a_setting_reaches_into_a_recipe_that_stands_in_the_study(recipe: Path) -> None:
    inline = yaml.safe_load(recipe.read_text())
    path = recipe.parent / "inline.yaml"
    path.write_text(yaml.safe_dump({"name": "inline", "recipe": inline}))
    before = load_study(path).runs[0].recipe
    for setting in ("recipe.name=other", "recipe.data.name=rows.csv", "recipe.data=rows.csv"):
        after = load_study(path, setting).runs[0].recipe
        assert (after.sizes, after.attack and after.attack.name) == (before.sizes, before.attack and before.attack.name)
    with pytest.raises(UsageError, match=r"--set recipe.data.clean=5: the study's recipe is a file, which no setting"):
        load_study(study(recipe), "recipe.data.clean=5")
