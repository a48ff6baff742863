"""The observer `mlflow`, against the real library with a local store."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from defensekit.components import Observer
from defensekit.host.discovery import load_plugins
from defensekit.studies.loading import load_study
from defensekit.studies.running import run_study
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.studies.helpers import model, result

mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (the [mlflow] extra)")
pytest.importorskip("sqlalchemy", reason="MLflow's local store is not installed (the [mlflow] extra)")

RECIPE = {"name": "pico", "seed": 3, "defense": {"scorer": {"name": "diffusion"}, "purifier": [{"name": "reset"}]}}
RESULT = result(
    {"suspect": model({"acc": 0.9, "asr": 1.0}), "purified": model({"acc": 0.8, "asr": 0.2})},
    {0.3: {"acc": 0.85, "asr": 0.7}, 0.5: {"acc": 0.8, "asr": 0.2}},
    0.5,
).model_dump()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)  # artifacts go into mlruns/ here
    return f"sqlite:///{tmp_path}/mlflow.db"


def observer(**parameters: Any) -> Observer:
    made = load_plugins().find("observer", "mlflow")(**parameters)
    assert isinstance(made, Observer)
    return made


def runs(store: str, experiment: str = "defensekit") -> list[Any]:
    client = mlflow.MlflowClient(store)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def test_a_run_is_in_mlflow_as_it_was(store: str, tmp_path: Path) -> None:
    watching = observer(tracking_uri=store, experiment="mine")
    watching.run_started(RECIPE)
    watching.stage_finished("statistics (fisher)", 2.5, False)
    watching.stage_finished("test rows", 0.1, True)
    [before] = runs(store, "mine")
    assert before.info.status == "RUNNING"
    watching.run_finished(RESULT)
    [run] = runs(store, "mine")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "pico")
    assert run.data.params == {
        "name": "pico", "seed": "3", "defense.scorer.name": "diffusion", "defense.purifier.0.name": "reset",
    }  # fmt: skip
    metrics = run.data.metrics
    assert (metrics["purified/acc"], metrics["suspect/asr"]) == (0.8, 1.0)
    assert metrics["seconds/statistics _fisher_"] == 2.5
    assert "seconds/test rows" not in metrics
    client = mlflow.MlflowClient(store)
    history = client.get_metric_history(run.info.run_id, "trial/asr")
    assert [(point.step, point.value) for point in history] == [(0, 0.7), (1, 0.2)]
    written = Path(client.download_artifacts(run.info.run_id, "result.json", str(tmp_path)))
    assert json.loads(written.read_text())["models"] == RESULT["models"]


def test_runs_of_a_study_are_told_apart_by_their_axes(store: str) -> None:
    study = observer(tracking_uri=store)
    first, second = (study.for_run(f"{name}, seed 0", {"defense.scorer": name}) for name in ("a", "b"))
    for watching in (first, second):
        watching.run_started(RECIPE)
    first.stage_failed("purified", "out of memory")
    first.run_failed("out of memory")
    second.run_finished(RESULT)
    found = {run.info.run_name: run for run in runs(store)}
    assert {name: run.info.status for name, run in found.items()} == {"a, seed 0": "FAILED", "b, seed 0": "FINISHED"}
    assert found["a, seed 0"].data.params["axis.defense.scorer"] == "a"
    assert found["a, seed 0"].data.tags["error"] == "out of memory"
    assert found["a, seed 0"].data.tags["failed stage"] == "purified"


def test_a_store_that_is_not_there_stops_the_run_before_it_starts() -> None:
    with pytest.raises(DefenseKitError, match="the observer mlflow: nonsense://x"):
        observer(tracking_uri="nonsense://x").run_started(RECIPE)


def test_a_study_is_stopped_before_its_first_stage(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, workspace = recipe.with_name("study.yaml"), recipe.with_name("w")
    path.write_text(f"{{name: s, recipe: {recipe.name}, observers: [{{name: mlflow, tracking_uri: 'nonsense://x'}}]}}")
    with pytest.raises(DefenseKitError, match="the observer mlflow: nonsense://x"):
        run_study(load_study(path), workspace)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=r"pip install 'defensekit\[mlflow\]'"):
        run_study(load_study(path), workspace)
    assert not (workspace / "store").exists()


def test_a_store_that_is_lost_stops_nothing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = observer(tracking_uri=store)
    watching.run_started(RECIPE)

    def lost(*arguments: Any, **named: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(mlflow.MlflowClient, "log_metric", lost)
    with pytest.warns(UserWarning, match="the connection to MLflow was lost, and this run is no longer recorded: gone"):
        watching.stage_finished("suspect", 1.0, False)
    watching.run_finished(RESULT)  # says it once
    [run] = runs(store)
    assert run.info.status == "RUNNING"
