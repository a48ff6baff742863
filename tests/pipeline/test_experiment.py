"""What a run makes beside its defense: the base fine-tuned anew, and the chosen defense from all clean rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import defensekit
from defensekit.cli.table import _used
from defensekit.pipeline import plan
from defensekit.result.narrative import story
from defensekit.result.page import render
from defensekit.result.schema import Result
from defensekit.text import read_rows
from defensekit.training import TrainingSettings
from tests.conftest import OWN_STEPS, shape


def stage(workspace: Path, result: Result, title: str) -> dict[str, Any]:
    """A stage of the run, as its manifest has it."""
    key = next(stage.key for stage in result.stages if stage.title == title)
    manifest: dict[str, Any] = json.loads((workspace / "store/artifacts" / key / "manifest.json").read_text())
    planned: dict[str, Any] = manifest["stage"]
    return planned


def texts(workspace: Path, key: str) -> set[str]:
    return {row.text for row in read_rows(workspace / "store/artifacts" / key / "files/rows.jsonl")}


def test_no_clean_row_is_wasted_after_the_choice(finished: tuple[Path, Path, Result]) -> None:
    _, workspace, result = finished
    made = {title: stage(workspace, result, title) for title in ("clean rows", "dev rows", "clean and dev rows")}
    fit, dev, both = (texts(workspace, next(s.key for s in result.stages if s.title == title)) for title in made)
    assert both == fit | dev
    assert (len(fit), len(dev), len(both)) == (32, 32, 64)
    test = texts(workspace, result.test_rows["plain"])
    for title in ("purified", "fine-tuned only"):
        assert texts(workspace, stage(workspace, result, title)["inputs"]["clean"]) == both
    assert texts(workspace, stage(workspace, result, "from the base")["inputs"]["rows"]) == both
    assert not both & test
    for trial in ("trial fraction 0", "trial fraction 0.25"):  # what is chosen by dev rows never learns from them
        assert texts(workspace, stage(workspace, result, trial)["inputs"]["clean"]) == fit


def test_without_refit_the_model_is_the_trial_that_was_chosen(
    finished: tuple[Path, Path, Result], recipe: Path, tmp_path: Path
) -> None:
    _, workspace, before = finished
    shape(recipe, defense__refit=False)
    shutil.copytree(workspace, tmp_path / "w")
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.identity != before.identity
    assert result.chosen is not None
    chosen = next(trial for trial in result.curve if trial.value == result.chosen.value)
    assert result.models["purified"].predictions == chosen.predictions
    assert result.models["purified"].metrics == chosen.metrics
    reused = {stage.title for stage in result.stages if stage.reused}
    assert {"suspect", "trial fraction 0.25", "from the base"} <= reused  # trials are shared by both


def test_without_a_rule_all_rows_are_the_defenses_where_refit_says_so(
    finished: tuple[Path, Path, Result], recipe: Path, tmp_path: Path
) -> None:
    _, workspace, _ = finished
    shutil.copytree(workspace, tmp_path / "w")
    for setting, role, budget in (({"choose": None}, "clean rows", 32), ({"refit": True}, "clean and dev rows", 64)):
        shape(recipe, **{f"defense__{key}": value for key, value in setting.items()})
        result = defensekit.run(recipe, tmp_path / "w")
        assert result.clean_budget == budget
        assert f" on {budget} clean rows" in " ".join(story(result))
        assert _used(result) == f"{budget} clean rows: all to fit"
        rows = next(stage.key for stage in result.stages if stage.title == role)
        for title, what in {"purified": "clean", "fine-tuned only": "clean", "from the base": "rows"}.items():
            assert stage(tmp_path / "w", result, title)["inputs"][what] == rows


def test_without_baselines_the_defense_is_the_same_and_alone(
    finished: tuple[Path, Path, Result], recipe: Path, tmp_path: Path
) -> None:
    _, workspace, before = finished
    shape(recipe, baselines=False, defense__compare={})
    shutil.copytree(workspace, tmp_path / "w")
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.models.keys() == {"clean", "suspect", "purified"}
    assert all(result.models[name].metrics == before.models[name].metrics for name in result.models)
    assert result.chosen == before.chosen
    assert [(trial.value, trial.dev_accuracy) for trial in result.curve] == [
        (trial.value, trial.dev_accuracy) for trial in before.curve
    ]
    assert all(stage.reused for stage in result.stages)
    titles = {stage.title for stage in before.stages} - {stage.title for stage in result.stages}
    assert {"from the base", "fine-tuned only", "trial fraction 0.25: answers to plain rows"} <= titles
    assert result.identity != before.identity  # another run of a study: it has less
    for one in (before, result):  # with the curve of what the rule saw
        assert 'id="curve"' in render(one)


def test_the_base_is_given_steps_enough_for_a_new_head(finished: tuple[Path, Path, Result]) -> None:
    _, workspace, result = finished
    anew, clean = (stage(workspace, result, title) for title in ("from the base", "clean reference"))
    assert anew["inputs"]["model"] == clean["inputs"]["model"]
    given = TrainingSettings.model_validate(clean["params"]["training"])
    assert anew["params"]["training"] == given.for_new_head(64, plan.HEAD_STEPS).model_dump()
    long = given.for_new_head(64, OWN_STEPS)
    assert -(-64 // long.batch_size) * long.epochs >= OWN_STEPS >= 192
    assert anew["params"]["training"]["batch_size"] <= 16
    changed = {key: anew["params"]["training"][key] for key in ("epochs", "batch_size")}
    assert clean["params"]["training"] | changed == anew["params"]["training"]


def test_a_defense_that_was_not_worth_it_is_marked(finished: tuple[Path, Path, Result]) -> None:
    """In the table, on the page, in the card."""
    from defensekit.result.model_card import card
    from defensekit.result.page import render

    _, _, result = finished
    changed = result.model_copy(deep=True)
    acc = {"clean": 0.9, "suspect": 0.9, "from-base": 0.8, "fine-tuned": 0.85, "random": 0.8, "purified": 0.7}
    for name, value in acc.items():
        changed.models[name].metrics["acc"] = changed.models[name].metrics["acc"].model_copy(update={"value": value})
    assert changed.not_worth == ["random", "purified"]
    page = render(changed)
    assert "random †" in page
    assert "no more accurate than the base" in page
    assert "purified †" in card(changed)
    for model in changed.models.values():
        model.only = None
    assert changed.marks.keys() == {"†"}
    changed.models["purified"].only = "positive"
    for shown in (render(changed), card(changed)):
        assert "purified † ‡" in shown
        assert "gives every plain test row the same answer" in shown
    changed.models["purified"].only = None
    del changed.models["from-base"]
    assert changed.not_worth == []
    assert "†" not in render(changed) + card(changed)
