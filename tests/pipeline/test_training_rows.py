"""A defense of training data: rows are scored once, taken away, and the base is trained anew on the others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import defensekit
from defensekit.cli.table import show
from defensekit.pipeline.preflight import survey
from defensekit.recipe.loader import load_recipe
from defensekit.result.narrative import story
from defensekit.result.page import render
from defensekit.result.schema import Result
from defensekit.utils.errors import UsageError
from tests.conftest import SMALL, shape, write_recipe
from tests.pipeline.test_experiment import stage

SPECTRAL = {"name": "spectral-signatures", "fraction": 0.25}


def defended(recipe: Path, **defense: Any) -> Path:
    """The tiny recipe with a defense of its training rows."""
    defense = {"stage": "training", "filter": SPECTRAL, **defense}
    return shape(recipe, **SMALL, defense=defense)


@pytest.fixture(scope="module")
def run(of_the_small_recipe: Path, tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, Path, Result]:
    """(recipe, workspace, result) of a run beside a random filter; what comes before is there."""
    folder = tmp_path_factory.mktemp("rows")
    compare = {"by chance": {"filter": {"name": "random", "fraction": 0.5}}}
    path = defended(write_recipe(folder, base), compare=compare)
    shutil.copytree(of_the_small_recipe, folder / "w/store")
    return path, folder / "w", defensekit.run(path, folder / "w")


def test_the_base_is_trained_anew_on_what_is_left(run: tuple[Path, Path, Result]) -> None:
    _, workspace, result = run
    assert list(result.models) == ["clean", "suspect", "from-base", "by chance", "filtered"]
    attacker, anew = stage(workspace, result, "suspect"), stage(workspace, result, "filtered")
    for same in ("params", "components", "seed"):
        assert anew[same] == attacker[same]
    assert anew["inputs"]["model"]["digest"] == attacker["inputs"]["model"]["digest"]  # another place may have it too
    poisoned, kept = result.rows("poisoned rows"), result.rows("filtered: rows kept")
    assert len(kept) == 36
    assert [row for row in poisoned if row in kept] == kept
    clean = {row.id: row for row in result.rows("train rows")}
    bad, left = (sum(row != clean[row.id] for row in rows) for rows in (poisoned, kept))
    filtered = result.models["filtered"].filtered
    assert filtered is not None
    assert (filtered.rows, filtered.taken, filtered.poisoned) == (48, 12, bad) == (48, 12, 10)
    assert filtered.recall == (bad - left) / bad
    assert filtered.precision == (bad - left) / 12
    assert filtered.auroc is not None
    assert result.models["filtered"].defense == {
        "filter": {"name": "spectral-signatures", "fraction": 0.25, "scope": "label", "threshold": 0.0}
    }
    chance = result.models["by chance"].filtered
    assert chance is not None
    assert chance.taken == 24
    assert result.models["suspect"].filtered is None


def test_no_stage_of_the_defender_is_given_the_rows_without_poison(run: tuple[Path, Path, Result]) -> None:
    _, workspace, result = run
    keys = {one.title: one.key for one in result.stages}
    hidden = {keys[title] for title in ("train rows", "test rows", "triggered rows", "clean reference")}
    for one in result.stages:
        if one.kind in ("features", "score", "keep"):
            given = stage(workspace, result, one.title)["inputs"].values()
            assert not hidden & {key for key in given if isinstance(key, str)}, one.title


def test_other_shares_and_thresholds_need_no_other_scores(run: tuple[Path, Path, Result]) -> None:
    recipe, workspace, before = run
    again = load_recipe(recipe, "defense={compare: {}, filter: {fraction: 0.5, scope: global}}")
    result = defensekit.run(again, workspace)
    made = {one.kind for one in result.stages if not one.reused}
    assert made == {"keep", "train", "predict"}
    filtered = result.models["filtered"].filtered
    assert filtered is not None
    assert filtered.taken == 24
    assert result.identity != before.identity


@pytest.mark.slow
def test_a_rule_chooses_how_many_are_taken(run: tuple[Path, Path, Result]) -> None:
    recipe, workspace, _ = run
    settings = ["defense.compare={}", "defense.choose={rule: accuracy-floor, over: filter.fraction, values: [0.2]}"]
    chosen = load_recipe(recipe, settings)
    ahead = {one.title for one in defensekit.preview(chosen, workspace) if one.cached}
    assert "scores of the training rows (spectral-signatures)" in ahead
    result = defensekit.run(chosen, workspace)
    assert result.chosen is not None
    assert result.chosen.over == "filter.fraction"
    filtered = result.models["filtered"].filtered
    assert filtered is not None
    assert filtered.taken == round(48 * result.chosen.value)
    assert result.clean_budget == 64
    with pytest.raises(UsageError, match="a filter with a fraction ignores its threshold; write `fraction: null`"):
        load_recipe(recipe, [settings[1].replace("fraction,", "threshold,")])


def test_people_are_told_what_was_found(run: tuple[Path, Path, Result], capsys: pytest.CaptureFixture[str]) -> None:
    _, _, result = run
    page, text = render(result), " ".join(story(result))
    for shown in ("precision", "recall", "AUROC", "12 of 48", "24 of 48"):
        assert shown in page
    filtered = result.models["filtered"].filtered
    assert filtered is not None
    assert f"took 12 of 48 away, and trained the base anew on the others by the attacker's settings. It took " \
           f"{filtered.recall:.1%} of the 10 poisoned rows" in text  # fmt: skip
    show(result, Path("report.html"))
    table = capsys.readouterr().out
    assert "training rows" in table
    assert f"{filtered.precision:.3f}" in table
    innocent = filtered.model_copy(update={"poisoned": 0, "precision": 0.0, "recall": None, "auroc": None})
    changed = result.model_copy(deep=True)
    changed.models["filtered"].filtered = innocent
    assert "No row was poisoned: whatever it took was clean." in " ".join(story(changed))
    assert Result.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        ({"stage": "trainin"}, "expected weights, input or training, got 'trainin'. Did you mean 'training'"),
        ({"filter": "random"}, "defense.filter: belongs to a defense of training data; write `stage: training` beside"),
        ({"stage": "training", "filter": "random", "scorer": "random"}, "one of training data has a `filter:` alone"),
        ({"stage": "training"}, "defense.filter: this key is missing"),
        ({"stage": "training", "filter": "random", "detectors": ["strip"]}, "defense.detectors: unknown key"),
        ({"stage": "training", "filter": "spectral-signature"}, "Did you mean 'spectral-signatures'"),
        (
            {"stage": "training", "filter": "random", "compare": {"other": {"scorer": "random"}}},
            "defense.compare.other.scorer: expected filter",
        ),
        (
            {"stage": "training", "filter": "random", "choose": {"rule": "accuracy-floor", "values": [0.5]}},
            r"there is no part 'selector' \(expected filter\)",
        ),
    ],
)
def test_a_mistake_in_the_section_is_explained(recipe: Path, defense: dict[str, Any], message: str) -> None:
    data = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump(data | {"defense": defense}))
    with pytest.raises(UsageError, match=message):
        load_recipe(recipe)


def test_a_given_suspect_has_no_training_rows(recipe: Path, suspect: Path) -> None:
    path = shape(recipe, attack=None, training=None, suspect=str(suspect), data__train=None)
    shape(path, defense={"stage": "training", "filter": "random"})
    with pytest.raises(UsageError, match="a defense of training data needs `attack:`, which has the rows"):
        load_recipe(path)


def test_a_resolved_recipe_is_the_same_recipe(recipe: Path) -> None:
    loaded = load_recipe(
        defended(recipe, choose={"rule": "accuracy-floor", "over": "filter.fraction", "values": [0.1]})
    )
    resolved = json.loads(json.dumps(loaded.resolved()))
    recipe.write_text(yaml.safe_dump(resolved))
    assert load_recipe(recipe).resolved() == resolved
    assert survey(loaded, lambda text: None).features().plain["inputs"].keys() == {"model", "rows"}
