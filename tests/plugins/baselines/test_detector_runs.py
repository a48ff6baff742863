"""Whole runs with detectors beside a defense."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import defensekit
from defensekit.cli.main import app
from defensekit.cli.table import _used
from defensekit.components import Observer
from defensekit.pipeline.detection import read_scores, threshold
from defensekit.pipeline.dry_run import preview
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.result.page import render
from defensekit.result.schema import Result, read_result
from defensekit.studies.loading import load_study
from defensekit.studies.planning import plan_study
from defensekit.text import read_rows
from defensekit.utils.errors import UsageError
from tests.conftest import make_sentences, shape, write_recipe, write_table

DETECTORS = (
    "  compare: {}\n  detectors: [{name: strip, copies: 4}, mahalanobis, disagreement, {name: rap, epochs: 1}]\n"
)


class Watching(Observer):
    """Remembers what was computed."""

    def stage_started(self, title: str) -> None:
        COMPUTED.append(title)


COMPUTED: list[str] = []


@pytest.fixture(scope="module")
def finished(
    finished: tuple[Path, Path, Result], tmp_path_factory: pytest.TempPathFactory, base: Path
) -> tuple[Path, Path, Result]:
    """The run of the tiny recipe, and detectors beside it: all that comes before them is there."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, base)
    recipe.write_text(recipe.read_text().replace("[0.25, 0.5]", "[0.5]") + DETECTORS)
    shutil.copytree(finished[1] / "store", folder / "w/store")
    planned = preview(recipe, folder / "w")
    COMPUTED.clear()
    result = defensekit.run(recipe, folder / "w", [Watching()])
    assert {stage.title for stage in planned} >= {*COMPUTED}
    return recipe, folder / "w", result


def artifacts(workspace: Path, kind: str) -> dict[str, dict[str, Any]]:
    manifests = (json.loads(path.read_text()) for path in (workspace / "store/artifacts").glob("*/manifest.json"))
    return {one["stage"]["title"]: one["stage"] for one in manifests if one["stage"]["kind"] == kind}


def test_a_result_says_what_each_detector_is_worth(finished: tuple[Path, Path, Result]) -> None:
    _, workspace, result = finished
    assert list(result.detectors) == ["strip", "mahalanobis", "disagreement", "rap"]
    assert result.clean_budget == 64
    store = Store(workspace / "store")
    suspect = result.models["suspect"].metrics
    for one in result.detectors.values():
        assert one.auroc
        assert one.auroc.low <= one.auroc.value <= one.auroc.high
        assert one.milliseconds > 0
        held_out, triggered = (read_scores(store.open(one.scores[on]).files) for on in ("held-out", "triggered"))
        assert [point.rate for point in one.points] == [0.01, 0.05]
        for point in one.points:
            assert point.threshold == threshold(held_out.scores, point.rate)
            assert point.flagged["held-out"] <= point.rate
            assert point.flagged["triggered"] == (triggered.scores > point.threshold).mean()
            assert point.metrics["asr"].value <= min(suspect["asr"].value, 1 - point.flagged["triggered"])
            assert point.metrics["acc"].value >= suspect["acc"].value - point.flagged["plain"]
            assert point.metrics["acc"].value <= suspect["acc"].value
            assert point.tpr
    # The trigger decides the suspect's answer, and hardly the purified model's.
    assert result.detectors["disagreement"].auroc.value > 0.9  # type: ignore[union-attr]
    assert "32 dev rows are too few for a threshold at 1% false positives" in result.warnings
    assert read_result(Path(result.folder) / "result.json") == result
    assert load_recipe(Path(result.folder) / "recipe.yaml").resolved() == result.recipe


def test_a_detector_is_told_no_label_and_nothing_of_a_row(finished: tuple[Path, Path, Result]) -> None:
    _, workspace, _ = finished
    stages = artifacts(workspace, "detect")
    for name in ("strip", "mahalanobis", "disagreement", "rap"):
        alike = [{**stages[f"{name}: scores of {rows} rows"], "title": ""} for rows in ("dev", "test", "triggered")]
        rows = [stage["inputs"].pop("rows") for stage in alike]
        assert alike[0] == alike[1] == alike[2]
        assert len({*rows}) == 3
    assert set(stages["strip: scores of dev rows"]["inputs"]) == {"base", "suspect", "clean"}


def test_what_it_learns_from_and_compares_with_knows_no_dev_row(finished: tuple[Path, Path, Result]) -> None:
    recipe, workspace, result = finished
    purified = artifacts(workspace, "detect")["disagreement: scores of dev rows"]["inputs"]["purified"]
    store, plan = Store(workspace / "store"), survey(load_recipe(recipe), print)
    assert result.chosen
    stage = store.open(purified).stage
    assert stage["title"] == f"trial fraction {result.chosen.value:g}"  # and not the one made of clean and dev rows
    assert stage["inputs"]["clean"] == plan.rows("clean").key
    assert artifacts(workspace, "fit").keys() == {"mahalanobis: fitted", "rap: fitted"}
    learnt = {stage["inputs"]["clean"] for stage in artifacts(workspace, "fit").values()}
    assert learnt == {plan.rows("clean").key}
    rows = {
        role: {row.text for row in read_rows(store.open(plan.rows(role).key).files / "rows.jsonl")}
        for role in ("clean", "dev")
    }
    assert not rows["clean"] & rows["dev"]


def test_scores_are_computed_once_and_shared(finished: tuple[Path, Path, Result]) -> None:
    recipe, workspace, result = finished
    COMPUTED.clear()
    assert defensekit.run(recipe, workspace, [Watching()]).detectors == result.detectors
    assert COMPUTED == []
    other = load_recipe(recipe, ["defense.detectors=[mahalanobis, {name: strip, copies: 5}]", "metrics=[acc]"])
    again = defensekit.run(other, workspace, [Watching()])
    assert COMPUTED == ["strip: scores of dev rows", "strip: scores of test rows", "strip: scores of triggered rows"]
    assert again.detectors["mahalanobis"].auroc == result.detectors["mahalanobis"].auroc
    assert again.detectors["mahalanobis"].points[0].metrics.keys() == {"acc"}


def test_the_model_that_a_detector_compares_with_is_another_where_all_rows_are_the_defenses(
    finished: tuple[Path, Path, Result],
) -> None:
    recipe, workspace, _ = finished
    loaded = load_recipe(recipe, ["defense.choose=null", "defense.refit=true", "defense.detectors=[disagreement]"])
    result = defensekit.run(loaded, workspace)
    assert result.clean_budget == 64
    assert [stage.title for stage in result.stages if stage.kind == "purify"].count("purified") == 1
    compared = next(stage.key for stage in result.stages if stage.title == "without dev rows")
    detected = next(stage.key for stage in result.stages if stage.kind == "detect")
    manifest = json.loads((workspace / "store/artifacts" / detected / "manifest.json").read_text())
    assert compared in json.dumps(manifest["stage"]["inputs"])
    assert _used(result) == "64 clean rows: all to fit, 32 of them to set thresholds"


def test_what_people_are_told(finished: tuple[Path, Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, workspace, result = finished
    page = render(result)
    assert "The suspect behind a detector" in page
    assert f"{result.detectors['rap'].points[1].metrics['asr'].value:.3f}" in page
    assert "The suspect behind a detector" not in render(result.model_copy(update={"detectors": {}}))
    monkeypatch.setenv("COLUMNS", "160")
    done = CliRunner().invoke(app, ["run", str(recipe), "--workspace", str(workspace), "--quiet"])
    assert done.exit_code == 0, done.output
    [line] = [
        line.split() for line in done.output.splitlines() if line.split()[:1] == ["disagreement"] and "5%" in line
    ]
    at = result.detectors["disagreement"].points[1]
    assert line[4] == f"{at.tpr.value:.3f}"  # type: ignore[union-attr]
    assert line[6:] == [f"{at.metrics[name].value:.3f}" for name in ("acc", "asr", "excess-asr")]
    assert "64 clean rows: 32 to fit and 32 to choose and set thresholds, then all to fit anew" in done.output


def test_a_given_suspect_without_a_trigger(recipe: Path, suspect: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"attack": None, "training": None, "data__train": None, "suspect": str(suspect)}
    write_table(
        recipe.parent / "rows.csv", [(text, str(int(label == "positive"))) for text, label in make_sentences(200)]
    )
    shape(
        recipe,
        **changes,
        metrics=["acc"],
        defense__choose=None,
        defense__purifier=["reset"],
        defense__compare={},
        defense__detectors=["mahalanobis"],
    )
    assert load_recipe(recipe).sizes.dev == 32
    result = defensekit.run(recipe, tmp_path / "w")
    [one] = result.detectors.values()
    assert one.auroc is None
    assert all(point.tpr is None and point.flagged.keys() == {"held-out", "plain"} for point in one.points)
    assert render(result)


def test_an_axis_of_a_study(recipe: Path, tmp_path: Path) -> None:
    path = recipe.with_name("study.yaml")
    axis = "{defense.detectors: [[], [strip], [strip, mahalanobis]]}"
    path.write_text(f"name: detectors\nrecipe: {recipe.name}\nmatrix: {axis}\n")
    plan = plan_study(load_study(path), tmp_path / "w")
    kinds = [stage.plain["title"] for stage in plan.stages.values() if stage.plain["kind"] in ("fit", "detect")]
    assert len(kinds) == 3 + 1 + 3  # strip's scores are shared
    assert len({run.identity for run in plan.runs}) == 3


@pytest.mark.parametrize(
    ("detectors", "message"),
    [
        ("[strap]", r"defense.detectors.0.name: there is no detector 'strap'. Did you mean 'strip'\?"),
        ("[strip, {name: strip, copies: 3}]", r"defense.detectors.1: 'strip' stands there twice"),
        ("[onion]", r"defense.detectors.0.model: 'onion' needs `model:`, a causal language model"),
        ("[{name: strip, copies: 0}]", r"defense.detectors.0.copies: .*greater than or equal to 1"),
    ],
)
def test_what_is_refused(detectors: str, message: str, recipe: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(recipe, [f"defense.detectors={detectors}"])


def test_a_defense_of_inputs_has_no_purified_model(recipe: Path, base: Path) -> None:
    defense = {"stage": "input", "sanitizer": {"name": "onion", "model": str(base)}}
    shape(recipe, defense={**defense, "detectors": ["strip"]})
    loaded = load_recipe(recipe)
    assert loaded.defender_roles == ("clean", "dev")
    with pytest.raises(UsageError, match=r"'disagreement' compares the suspect with the purified model, and a defense"):
        load_recipe(recipe, ["defense.detectors=[disagreement]"])
