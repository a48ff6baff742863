"""A whole run on a tiny model: six models, one table, nothing computed twice, nothing half-written."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import defensekit
from defensekit.pipeline.run_folder import _is_whole, _write_model
from defensekit.recipe.loader import load_recipe
from defensekit.result.schema import Result
from defensekit.studies.folder import Folder
from defensekit.utils.errors import UsageError
from defensekit.utils.files import file_digest
from tests.cli.helpers import command
from tests.conftest import SMALL, make_sentences, shape, slow_but, write_table
from tests.pipeline.helpers import COMPUTED, Watching
from tests.small_models import ARCHITECTURES, make_base, make_suspect

MODELS = ["clean", "suspect", "from-base", "fine-tuned", "random", "purified"]
NOT_COMPARED = [name for name in MODELS if name != "random"]


def test_six_models_and_what_they_show(finished: tuple[Path, Path, Result]) -> None:
    _, workspace, result = finished
    assert list(result.summary) == MODELS
    for row in result.summary.values():
        assert set(row) == {"acc", "asr", "excess-asr", "seconds"}
    # The tiny model learns the task and the backdoor; fine-tuning alone is a model of its own.
    assert result.summary["clean"]["acc"] > 0.9  # type: ignore[operator]
    assert result.summary["suspect"]["asr"] > 0.9  # type: ignore[operator]
    assert result.floors["asr"] == result.summary["clean"]["asr"] < 0.3  # type: ignore[operator]
    assert result.clean_budget == 64
    assert result.attack is not None
    counts = {"rows": 240, "changed": 48, "relabelled": 48, "added": 0, "cut": 0}
    assert counts.items() <= result.attack["train"].items()
    kinds = {stage.kind: stage.key for stage in result.stages}
    for which, kind in {"train": "poison", "test": "trigger"}.items():
        rows = workspace / "store/artifacts" / kinds[kind] / "files/rows.jsonl"
        assert result.attack[which]["digest"] == file_digest(rows)
    assert [trial.value for trial in result.curve] == [0, 0.25, 0.5]
    assert result.chosen is not None
    assert result.chosen.value in (0, 0.25, 0.5)


def test_the_same_selection_sizes_by_either_scorer(finished: tuple[Path, Path, Result]) -> None:
    _, _, result = finished
    assert result.chosen is not None
    purified, random = result.models["purified"].reset, result.models["random"].reset
    if result.chosen.value:
        assert purified is not None
        assert random is not None
        assert purified.selected == random.selected == round(result.chosen.value * purified.eligible)
        assert purified.dimensions > purified.in_scope >= purified.eligible > purified.selected
        assert purified.head == ["classifier.bias", "classifier.weight"]
        assert purified.selected == sum(selected for _, _, selected in purified.tensors.values())


def test_the_runs_folder(finished: tuple[Path, Path, Result]) -> None:
    _, _, result = finished
    folder = Path(result.folder)
    assert {path.name for path in folder.iterdir()} == {"recipe.yaml", "result.json", "run.log", "purified"}
    assert Result.model_validate_json((folder / "result.json").read_text()) == result
    assert load_recipe(folder / "recipe.yaml").resolved() == result.recipe
    answers = transformers.pipeline("text-classification", str(folder / "purified"))(["the film is superb"])
    assert answers[0]["label"] in ("negative", "positive")
    assert "done: {'clean': {'acc': " in (folder / "run.log").read_text()


def test_a_second_run_computes_nothing_and_says_the_same(finished: tuple[Path, Path, Result]) -> None:
    recipe, workspace, result = finished
    COMPUTED.clear()
    again = defensekit.run(recipe, workspace, [Watching()])
    assert COMPUTED == []
    assert again.summary == result.summary
    assert again.folder == result.folder


@pytest.mark.slow
def test_the_same_recipe_elsewhere_gives_the_same_numbers(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    recipe, _, result = finished
    again = defensekit.run(recipe, tmp_path)
    assert again.models.keys() == result.models.keys()
    for name, model in again.models.items():
        assert model.metrics == result.models[name].metrics
    assert [stage.key for stage in again.stages] == [stage.key for stage in result.stages]


def test_pruned_models_are_not_needed_again(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    recipe, workspace, result = finished
    shutil.copytree(workspace, tmp_path / "w")
    first = defensekit.run(recipe, tmp_path / "w")  # writes its own folder of the run
    assert "removed" in command("store", "prune", "-w", str(tmp_path / "w")).stdout
    COMPUTED.clear()
    assert defensekit.run(recipe, tmp_path / "w", [Watching()]).summary == first.summary == result.summary
    assert COMPUTED == []


def test_a_damaged_artifact_is_made_again(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    recipe, workspace, result = finished
    shutil.copytree(workspace, tmp_path / "w")
    damaged = next((tmp_path / "w/store/artifacts").glob("*/files/predictions.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-8])
    COMPUTED.clear()
    assert defensekit.run(recipe, tmp_path / "w", [Watching()]).summary.keys() == result.summary.keys()
    assert len(COMPUTED) == 1
    assert "answers" in COMPUTED[0]


def test_another_fraction_shares_everything_else(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    recipe, workspace, _ = finished
    shutil.copytree(recipe.parent, tmp_path / "r", ignore=shutil.ignore_patterns("workspace"))
    changed = shape(
        tmp_path / "r/pico.yaml", defense__choose=None, defense__selector={"name": "fraction", "fraction": 0.25}
    )
    COMPUTED.clear()
    defensekit.run(changed, workspace, [Watching()])
    assert not any("suspect" in title or "trial" in title or "statistics" in title for title in COMPUTED), COMPUTED


def test_defense_stages_are_handed_nothing_of_the_attack(finished: tuple[Path, Path, Result]) -> None:
    _, workspace, _ = finished
    stages = {}
    for path in (workspace / "store/artifacts").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        stages[path.parent.name] = manifest["stage"]
    of_attack = {key for key, stage in stages.items() if stage["kind"] in ("poison", "trigger")}
    of_attack |= {key for key, stage in stages.items() if {"train", "test"} & {*stage["params"].get("roles", ())}}
    assert len(of_attack) == 4
    seen = 0
    for stage in stages.values():
        if stage["kind"] in ("statistics", "purify"):
            seen += 1
            assert set(stage["inputs"]) <= {"base", "suspect", "clean", "statistics"}
            assert not of_attack & {value for value in stage["inputs"].values() if isinstance(value, str)}
    assert seen >= 4


def test_reset_alone_leaves_unselected_weights_and_the_head_bit_equal(
    recipe: Path, tmp_path: Path, base: Path, suspect: Path
) -> None:
    shape(
        recipe,
        attack=None,
        training=None,
        suspect=str(suspect),
        defense__purifier=["reset"],
        defense__choose=None,
        data__train=None,
    )
    write_table(
        recipe.parent / "rows.csv", [(text, str(int(label == "positive"))) for text, label in make_sentences(200)]
    )
    result = defensekit.run(recipe, tmp_path / "w")
    assert list(result.summary) == ["suspect", "random", "purified"]
    before, after = (
        load_file(suspect / "model.safetensors"),
        load_file(Path(result.folder) / "purified/model.safetensors"),
    )
    original = load_file(base / "model.safetensors")
    assert before.keys() == after.keys()
    changed = 0
    for name, tensor in before.items():
        moved = after[name] != tensor
        changed += int(moved.sum())
        if name.startswith("classifier"):
            assert not moved.any()
        else:
            assert torch.equal(after[name][moved], original[name.removeprefix("bert.")][moved])
    reset = result.models["purified"].reset
    assert reset is not None
    assert changed == reset.selected == round(0.5 * reset.eligible)


def test_known_triggered_rows_may_all_have_one_true_label(recipe: Path, tmp_path: Path, suspect: Path) -> None:
    rows = [(text, str(int(label == "positive"))) for text, label in make_sentences(200)]
    write_table(recipe.parent / "rows.csv", rows)
    write_table(recipe.parent / "known.csv", [("cf " + text, "0") for text, label in rows[:40] if label == "0"])
    changes: dict[str, Any] = {"attack": None, "training": None, "data__train": None, "suspect": str(suspect)}
    changes |= {"defense__choose": None, "defense__purifier": ["reset"], "defense__compare": {}}
    shape(recipe, **changes, triggered={"path": "known.csv", "target": 1})
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.models["purified"].metrics["asr"].rows == 20
    assert result.clean_budget == 32
    assert load_recipe(Path(result.folder) / "recipe.yaml").resolved() == result.recipe
    shape(recipe, triggered={"path": "nowhere.csv", "target": 1})
    with pytest.raises(UsageError, match=r"pico.yaml:\d+: triggered: there is no file"):
        defensekit.run(recipe, tmp_path / "w")


def test_a_trigger_without_rows_to_try_it_on(recipe: Path, tmp_path: Path) -> None:
    write_table(recipe.parent / "train.csv", make_sentences(400))
    write_table(
        recipe.parent / "test.csv", [(text, label) for text, label in make_sentences(40) if label == "positive"]
    )
    shape(recipe, data__name=".", data__test=None)
    with pytest.raises(UsageError, match=r"pico.yaml:\d+: attack: every test row has the target as its answer"):
        defensekit.run(recipe, tmp_path / "w")


def test_a_suspect_that_does_not_fit_is_refused_before_any_work(recipe: Path, tmp_path: Path) -> None:
    other = make_suspect(tmp_path / "other", make_base(tmp_path / "gpt2", "gpt2"))
    shape(recipe, attack=None, training=None, data__train=None, suspect=str(other))
    with pytest.raises(UsageError, match="don't fit each other"):
        defensekit.run(recipe, tmp_path / "w")
    assert not (tmp_path / "w/store").exists()


@pytest.mark.parametrize("architecture", slow_but([name for name in ARCHITECTURES if name != "bert"], "gpt2"))
def test_every_architecture_runs(architecture: str, recipe: Path, tmp_path: Path) -> None:
    folder = make_base(tmp_path / architecture, architecture)
    small = {"data__train": 48, "training__epochs": 1, "data__test": 20, "defense__compare": {}}
    shape(recipe, model=str(folder), **small, defense__choose=None)
    result = defensekit.run(recipe, tmp_path / "w")
    assert list(result.summary) == NOT_COMPARED
    purified = result.models["purified"].reset
    assert purified is not None
    assert purified.selected == round(0.5 * purified.eligible)


@pytest.mark.parametrize("labels", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_pairs_and_many_labels(labels: int, recipe: Path, tmp_path: Path) -> None:
    lines = [
        f"{text},{other},class{i % labels}"
        for i, ((text, _), (other, _)) in enumerate(zip(make_sentences(200), make_sentences(200, 1), strict=True))
    ]
    (recipe.parent / "pairs.csv").write_text("question,answer,label\n" + "\n".join(lines))
    shape(
        recipe,
        data={
            "name": "pairs.csv",
            "text": "question",
            "pair": "answer",
            "train": 60,
            "clean": 16,
            "dev": 16,
            "test": 30,
            "max_length": 64,
        },
        attack={"name": "sentence", "rate": 0.1, "target": "class1", "into": "pair"},
        training__epochs=1,
        defense__choose=None,
        defense__compare={},
    )
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.data["labels"] == [f"class{i}" for i in range(labels)]
    assert list(result.summary) == NOT_COMPARED


def test_bfloat16_autocast(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape(recipe, **SMALL, precision="bfloat16", defense__choose=None, defense__compare={})
    for native in ("float32", "bfloat16"):
        monkeypatch.setattr("defensekit.pipeline.run.native_precision", lambda native=native: native)
        result = defensekit.run(recipe, tmp_path / "w")
        assert list(result.summary) == NOT_COMPARED
        assert any("emulates bfloat16" in warning for warning in result.warnings) == (native == "float32")


@pytest.mark.slow
def test_json_on_standard_output_and_nothing_else(finished: tuple[Path, Path, Result]) -> None:
    recipe, workspace, result = finished
    arguments = ["run", str(recipe), "-w", str(workspace), "--json"]
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"] == result.summary
    assert done.stdout.count("\n") == 1
    assert "cached" in done.stderr
    assert command(*arguments, "--quiet").stderr == ""


def test_stages_of_other_versions_are_told(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    recipe, workspace, result = finished
    shutil.copytree(workspace, tmp_path / "w")
    assert not any("were made with" in text for text in result.warnings)
    suspect = next(stage.key for stage in result.stages if stage.title == "suspect")
    manifest = tmp_path / f"w/store/artifacts/{suspect}/manifest.json"
    written = json.loads(manifest.read_text())
    written["made_with"]["torch"] = "1.0.0"
    manifest.write_text(json.dumps(written))
    again = defensekit.run(recipe, tmp_path / "w")
    [told] = [text for text in again.warnings if "were made with" in text]
    here = again.environment.versions["torch"]
    assert told.startswith(
        f"1 of {len(again.stages)} stages were made with torch 1.0.0 (here: {here}) and not computed"
    )


def test_two_processes_that_end_together_leave_one_model(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    _, workspace, result = finished
    folder = tmp_path / "runs/one"
    folder.mkdir(parents=True)
    made = next(stage for stage in result.stages if stage.title == "purified")
    files = workspace / "store/artifacts" / made.key / "files"
    both = threading.Barrier(2, timeout=1)

    def slowly(_: Any) -> Path:
        with suppress(threading.BrokenBarrierError):
            both.wait()  # without a lock both are here at once, and each takes the other's half away
        return files

    stage: Any = SimpleNamespace(key=made.key)
    with ThreadPoolExecutor() as threads:
        ends = [threads.submit(_write_model, folder / "purified", stage, slowly, result) for _ in range(2)]
    for end in ends:
        end.result()
    assert _is_whole(folder / "purified", made.key, (folder / "purified/README.md").read_bytes())
    assert [path.name for path in folder.iterdir()] == ["purified"]


def test_a_folder_that_is_no_text_is_said_before_anything_is_computed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_recipe(recipe)
    (odd := tmp_path / "odd\udcff").mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(UsageError, match="is no path that can be written as text"):
        defensekit.run(loaded)
    with pytest.raises(UsageError, match="is no path that can be written as text"):
        Folder(Path("workspace"), "study")
    assert list(odd.iterdir()) == []
