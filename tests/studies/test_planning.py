"""A plan counts what runs share, and makes nothing."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import defensekit
from defensekit.pipeline.experiment import Experiment
from defensekit.pipeline.preflight import Known
from defensekit.result.schema import StageRecord
from defensekit.studies.folder import Folder
from defensekit.studies.loading import load_study
from defensekit.studies.planning import plan_study, planned
from defensekit.studies.running import run_study
from tests.studies.helpers import model, study
from tests.studies.helpers import result as made_up


def test_a_plan_counts_what_runs_share_and_makes_nothing(recipe: Path, tmp_path: Path) -> None:
    plan = plan_study(load_study(study(recipe)), tmp_path / "w")
    kinds = Counter(stage.plain["kind"] for stage in plan.stages.values())
    # Four defenses, random at each of two fractions, fine-tuning alone; one suspect, one clean reference.
    assert kinds == {"data": 4, "poison": 1, "trigger": 1, "train": 3, "statistics": 1, "purify": 7, "predict": 20}
    assert plan.missing.keys() == plan.stages.keys()
    assert plan.estimate().unseen == sorted(kinds)
    assert not (tmp_path / "w").exists()
    # Models are removed again, and results remember what they took: of other studies, of this one first.
    train = StageRecord(title="suspect", kind="train", key="a", reused=False, seconds=40.0)
    unknown = StageRecord(title="purified", kind="purify", key="b", reused=True, seconds=None)
    other = Folder(tmp_path / "w", "other")
    other.write("a", made_up({"purified": model({"acc": 1.0})}, stages=[train, unknown]))
    other.write("b", made_up({"purified": model({"acc": 1.0})}, stages=[train]))
    assert plan.estimate().seconds == 120
    assert plan.estimate().unseen == sorted(kinds.keys() - {"train"})
    assert plan.estimate().unsized == sorted(kinds)
    quick = train.model_copy(update={"seconds": 10.0})
    plan.folder.write("c", made_up({"purified": model({"acc": 1.0})}, stages=[quick]))
    assert plan.estimate().seconds == 30
    (plan.folder.results / "c.json").write_text("{")
    assert plan.estimate().seconds == 120
    # What is planned is what a run of each recipe would make.
    alone = {stage.key for row in plan.study.runs for stage in defensekit.preview(row.recipe, tmp_path / "w")}
    assert alone == set(plan.stages)


AXES = [
    "{data.clean: [16, 32], data.dev: [16, 32], data.max_length: [16, 32]}",
    "{attack.rate: [0.1, 0.2], training.epochs: [1, 2]}",
    "{metrics: [[acc], [acc, asr], [ece]]}",
    "{precision: [float32, bfloat16]}",
    "{defense.scorer: [magnitude, random], defense.purifier: [[reset], [prune]]}",
    "{retuning: [{rows: [4]}], defense.scorer: [magnitude, random]}",
]


@pytest.mark.parametrize("matrix", AXES)
def test_runs_planned_together_have_the_keys_of_runs_planned_alone(recipe: Path, tmp_path: Path, matrix: str) -> None:
    """What runs share is asked once: that must hang on everything that it follows from."""
    path = recipe.with_name("study.yaml")
    path.write_text(f"name: together\nrecipe: {recipe.name}\nseeds: [0, 1]\nmatrix: {matrix}\n")
    together = plan_study(load_study(path), tmp_path / "w").runs
    assert len(together) > 2
    for run in together:
        alone = planned(run.run, Known(), lambda text: None)
        assert alone.identity == run.identity
        assert [stage.key for stage in alone.stages] == [stage.key for stage in run.stages]
        assert alone.unknown == run.unknown


def test_what_has_a_result_is_not_planned(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_study(load_study(study(recipe)), tmp_path / "w")
    for run in plan.runs[1:]:
        plan.folder.write_bytes(run.id, b"{}")
    again = plan_study(load_study(study(recipe)), tmp_path / "w")
    asked: list[Any] = []
    monkeypatch.setattr("defensekit.studies.planning.Experiment", lambda plan: asked.append(plan) or Experiment(plan))
    assert [run.id for run in again.todo] == [plan.runs[0].id]
    assert again.missing
    assert len(asked) == 1


@pytest.mark.slow
def test_an_estimate_rests_on_what_stages_took(recipe: Path, tmp_path: Path) -> None:
    path = study(recipe)
    run_study(load_study(path), tmp_path / "w")
    more = plan_study(load_study(path, "seeds=[0,1]"), tmp_path / "w")
    assert (len(more.runs), len(more.todo)) == (8, 4)
    estimate = more.estimate()
    assert estimate.stages["train"] == 3  # clean reference, suspect, and the base anew
    assert estimate.seconds > 0
    assert estimate.bytes > 0
    # Models were removed again: results remember seconds, and nobody how large one is.
    assert estimate.unseen == []
    assert estimate.unsized == ["purify", "statistics", "train"]
