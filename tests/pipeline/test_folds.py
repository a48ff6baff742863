"""The choice by folds: every clean row measures, and no model is measured by a row that it was made from."""

from pathlib import Path
from typing import Any

import pytest

import defensekit
from defensekit.pipeline.dry_run import requested
from defensekit.pipeline.experiment import Experiment
from defensekit.pipeline.graph import Stage, closure
from defensekit.pipeline.predictions import read_predictions
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.result.model_card import card
from defensekit.result.page import render
from defensekit.text import Row, read_rows
from defensekit.utils.errors import UsageError
from tests.conftest import shape

FOLDS = 3
RULE: dict[str, Any] = {"rule": "accuracy-floor", "values": [0.5], "max_drop": 1, "folds": FOLDS}
SMALL: dict[str, Any] = {"data__train": 60, "data__clean": 20, "data__dev": 11, "data__test": 40, "training__epochs": 1}


def rows_of(store: Store, key: str) -> list[Row]:
    return read_rows(store.open(key).files / "rows.jsonl")


def test_every_clean_row_measures_and_none_measures_what_it_made(recipe: Path, tmp_path: Path) -> None:
    shape(recipe, **SMALL, defense__purifier=["reset"], defense__choose=RULE, defense__compare={})
    result = defensekit.run(recipe, tmp_path / "w")
    store = Store(tmp_path / "w" / "store")
    stages = {stage.title: store.open(stage.key).stage for stage in result.stages}
    everything = [*rows_of(store, key_of(result, "clean rows")), *rows_of(store, key_of(result, "dev rows"))]
    right, held_rows = 0, []
    for fold in range(1, FOLDS + 1):
        trial = stages[f"trial fraction 0.5, fold {fold} of {FOLDS}"]
        statistics = store.open(trial["inputs"]["statistics"]).stage
        asked = f"trial fraction 0.5, fold {fold} of {FOLDS}: answers to fold {fold} of {FOLDS}, held out"
        fit, held = (rows_of(store, key) for key in (trial["inputs"]["clean"], stages[asked]["inputs"]["rows"]))
        assert statistics["inputs"]["clean"] == trial["inputs"]["clean"]  # what is scored by is of the fold too
        assert {row.text for row in fit} | {row.text for row in held} == {row.text for row in everything}
        assert not {row.text for row in fit} & {row.text for row in held}
        assert len(held) in (len(everything) // FOLDS, len(everything) // FOLDS + 1)
        answers = read_predictions(store.open(key_of(result, asked)).files)
        right += int((answers.answers() == answers.labels).sum())
        held_rows += [row.text for row in held]
    assert sorted(held_rows) == sorted(row.text for row in everything)
    measured = {trial.value: trial for trial in result.curve}
    assert measured[0.5].dev_accuracy == pytest.approx(right / len(everything))
    assert measured[0.5].metrics.keys() == result.models["purified"].metrics.keys()
    # The suspect is measured on the same rows, and the model of the value that is taken is made from all of them.
    before = read_predictions(store.open(key_of(result, "suspect: answers to clean and dev rows")).files)
    assert result.chosen is not None
    assert result.chosen.suspect_dev_accuracy == pytest.approx(before.accuracy())
    assert (result.chosen.value, result.chosen.folds, result.clean_budget) == (0.5, FOLDS, 31)
    assert stages["purified"]["inputs"]["clean"] == key_of(result, "clean and dev rows")
    for shown in (card(result), render(result)):
        assert f"the same rows, in {FOLDS} folds" in shown
    assert f"clean rows alone, in {FOLDS} folds" in render(result)


def key_of(result: defensekit.Result, title: str) -> str:
    return next(stage.key for stage in result.stages if stage.title == title)


def test_trials_are_planned_ahead_and_shared_by_what_chooses_otherwise(recipe: Path) -> None:
    def trials(**rule: Any) -> dict[str, str]:
        shape(recipe, **SMALL, defense__choose=RULE | rule)
        asked = requested(Experiment(survey(load_recipe(recipe), lambda text: None), certain=True).requests())
        found: list[Stage] = [*closure([one.stage for one in asked if one.stage]).values()]
        return {stage.plain["title"]: stage.key for stage in found if stage.plain["title"].startswith("trial fraction")}

    planned, other = trials(), trials(max_drop=0.1, values=[0.5, 0.7])
    assert {title for title in planned if title.endswith(f"fold 2 of {FOLDS}")} == {
        f"trial fraction {value}, fold 2 of {FOLDS}" for value in ("0", "0.5")
    }
    assert planned.items() <= other.items()
    assert not {*planned.values()} & {*trials(folds=4).values()}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"defense__choose": RULE | {"rule": "planted", "max_drop": None}},
            "defense.choose.folds: 'planted' tries values",
        ),
        ({"defense__refit": False}, "defense.refit: with folds the model is made from all clean rows"),
        (
            {"data__clean": 1, "data__dev": 1},
            "defense.choose.folds: expected a row at least for each, got 3 folds of 2",
        ),
        (
            {
                "defense": {
                    "stage": "training",
                    "filter": {"name": "random"},
                    "choose": RULE | {"over": "filter.fraction"},
                }
            },
            "defense.choose.folds: folds are for a defense of weights; one of training data has dev rows",
        ),
    ],
)
def test_folds_are_refused_where_they_mean_nothing(recipe: Path, changes: dict[str, Any], error: str) -> None:
    shape(recipe, defense__choose=RULE)
    if changes.get("defense__choose"):
        del changes["defense__choose"]["max_drop"]
    shape(recipe, **changes)
    with pytest.raises(UsageError, match=error):
        load_recipe(recipe)
