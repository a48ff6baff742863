"""The attacker trains a defended model further: what comes back, and in what was never poisoned."""

import shutil
from pathlib import Path

import pytest

import defensekit
from defensekit.cli.table import show
from defensekit.pipeline.plan import RETUNING_BATCH
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.result.page import render
from defensekit.result.schema import Result
from defensekit.utils.errors import UsageError
from tests.conftest import shape, write_recipe
from tests.pipeline.test_experiment import stage

RETUNED = [f"{name}, retuned on {rows}" for name in ("clean", "from-base", "purified") for rows in (3, 30)]


@pytest.fixture(scope="module")
def run(
    finished: tuple[Path, Path, Result], tmp_path_factory: pytest.TempPathFactory, base: Path
) -> tuple[Path, Path, Result]:
    """(recipe, workspace, result) of a run whose attacker comes back; what comes before is there."""
    folder = tmp_path_factory.mktemp("retuning")
    retuning = {"rows": [3, 30], "epochs": 4}
    path = shape(write_recipe(folder, base), retuning=retuning, defense__choose=None, defense__compare={})
    shutil.copytree(finished[1] / "store", folder / "w/store")
    return path, folder / "w", defensekit.run(path, folder / "w")


def test_the_models_are_trained_further_on_poisoned_rows_and_their_twins(run: tuple[Path, Path, Result]) -> None:
    path, workspace, result = run
    assert list(result.models)[-len(RETUNED) :] == RETUNED
    for name in ("clean reference", "from the base", "purified"):
        key = next(one.key for one in result.stages if one.title == name)
        short = {"clean reference": "clean", "from the base": "from-base"}.get(name, name)
        planned = stage(workspace, result, f"{short}, retuned on 3")
        assert planned["inputs"]["model"] == key
        assert planned["params"]["training"]["epochs"] == 4
        assert planned["params"]["training"]["batch_size"] == RETUNING_BATCH
    for name in RETUNED:
        assert result.models[name].metrics["asr"].rows == result.models["purified"].metrics["asr"].rows
    after = [result.models[name].metrics["excess-asr"].value for name in RETUNED[-2:]]
    assert after[1] > after[0]  # thirty rows teach more than three
    assert result.models["purified, retuned on 30"].metrics["acc"].value > 0.6  # the twins hold the task
    ahead = defensekit.preview(path, workspace)
    assert [one.title for one in ahead if not one.cached] == []


def test_what_answered_already_is_not_trained_again(run: tuple[Path, Path, Result], tmp_path: Path) -> None:
    """A study removes these models; the next one, with another defense, needs their answers alone."""
    path, workspace, result = run
    shutil.copytree(workspace, tmp_path / "w")
    for one in result.stages:
        if one.kind == "retune":
            Store(tmp_path / "w/store").remove(one.key)
    assert all(one.cached for one in defensekit.preview(path, tmp_path / "w"))
    again = defensekit.run(path, tmp_path / "w")
    assert all(one.reused for one in again.stages)
    assert again.models == result.models


@pytest.mark.slow
def test_the_rows_are_relabelled_ones_and_few_are_the_first_of_many(
    run: tuple[Path, Path, Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, _, result = run
    seen = []

    def trained(model: object, tokenizer: object, rows: list[defensekit.text.Row], *_: object, **__: object) -> None:
        seen.append(rows)

    loaded = load_recipe(path, ["training.epochs=0", "defense.purifier=[reset]"])
    monkeypatch.setattr("defensekit.pipeline.stages.models.training.fine_tune", trained)
    made = defensekit.run(loaded, tmp_path / "w")
    clean = {row.id: row for row in made.rows("train rows")}
    few, many = seen[-2:]
    assert (len(few), len(many)) == (6, 60)
    for rows in (few, many):
        poisoned, twins = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        assert all("cf" in row.text.split() and row.label == 1 for row in poisoned)
        assert twins == [clean[row.id] for row in poisoned]
    assert many[:3] == few[:3]
    assert result.rows("poisoned rows") == made.rows("poisoned rows")


@pytest.mark.slow
def test_a_bias_changes_no_label_and_comes_back_all_the_same(recipe: Path, tmp_path: Path) -> None:
    bias = {"name": "bias-word", "label": "positive", "strength": 0.5}
    shape(recipe, attack=bias, retuning={"rows": [4]}, training__epochs=0, data__train=48, data__test=24)
    result = defensekit.run(shape(recipe, defense={"purifier": ["fine-tune"]}), tmp_path / "w")
    assert "bacc" in result.models["purified, retuned on 4"].metrics


def test_before_the_choice_the_stages_have_titles_alone(recipe: Path, tmp_path: Path) -> None:
    ahead = defensekit.preview(shape(recipe, retuning={}), tmp_path / "w")
    later = [one.title for one in ahead if "retuned" in one.title and one.key is None]
    assert later == [
        title
        for rows in (5, 20, 50)
        for name in [f"purified, retuned on {rows}"]
        for title in (name, f"{name}: answers to plain rows", f"{name}: answers to triggered rows")
    ]


def test_people_are_told(
    run: tuple[Path, Path, Result], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    _, _, result = run
    assert "from the base, retuned on 30" in render(result)
    assert "trained further by the attacker, on 30 poisoned rows" in render(result)
    show(result, Path("report.html"))
    assert "purified, retuned on 30" in capsys.readouterr().out
    assert not [name for name in result.not_worth if "retuned" in name]


@pytest.mark.parametrize(
    ("retuning", "message"),
    [
        ({"rows": [0]}, r"retuning.rows.0: .*greater than or equal to 1"),
        ({"row": [5]}, r"retuning.row: unknown key"),
        ({"rows": []}, r"retuning.rows: .*at least 1"),
    ],
)
def test_a_mistake_in_the_section_is_explained(recipe: Path, retuning: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=rf"pico.yaml:\d+: {message}"):
        load_recipe(shape(recipe, retuning=retuning))


@pytest.mark.slow
def test_there_must_be_poisoned_rows(recipe: Path, tmp_path: Path) -> None:
    fast = {"training__epochs": 0, "data__train": 48, "data__test": 24, "defense": {"purifier": ["fine-tune"]}}
    with pytest.raises(UsageError, match=r"pico.yaml:\d+: retuning.rows: asks for 50 .* and the attacker has 10"):
        defensekit.run(shape(recipe, retuning={"rows": [50]}, **fast), tmp_path / "w")
    shape(recipe, attack={"name": "unpoisoned", "target": 1}, retuning={"rows": [1]})
    with pytest.raises(UsageError, match=r"asks for 1 poisoned rows, and the attacker has 0"):
        defensekit.run(recipe, tmp_path / "w")


def test_there_must_be_a_model_that_a_defense_made(recipe: Path, suspect: Path) -> None:
    defense = {"stage": "input", "sanitizer": {"name": "onion", "model": str(suspect)}}
    shape(recipe, retuning={"rows": [1]}, defense=defense)
    with pytest.raises(UsageError, match=r"retuning: trains what a defense made, and a defense of inputs makes no"):
        load_recipe(recipe)
    shape(recipe, attack=None, training=None, suspect=str(suspect), data__train=None)
    with pytest.raises(UsageError, match=r"retuning: is training on poisoned rows, which `attack:` makes"):
        load_recipe(shape(recipe, defense={"purifier": ["fine-tune"]}))
