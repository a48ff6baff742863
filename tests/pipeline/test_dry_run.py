"""What a dry run says is what a run then does."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import defensekit
from defensekit.components import Observer, Planned
from defensekit.pipeline.dry_run import preview
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.result.schema import Result
from defensekit.utils.errors import UsageError
from tests.conftest import SMALL, make_sentences, shape, write_table

SEEN: dict[str, Any] = {}


class Watching(Observer):
    """Remembers what was planned and what was computed."""

    def planned(self, stages: Sequence[Planned]) -> None:
        SEEN.update(planned=list(stages), computed=[])

    def stage_started(self, title: str) -> None:
        SEEN["computed"].append(title)


def todo(stages: list[Planned]) -> list[str]:
    return [stage.title for stage in stages if not stage.cached]


def test_a_preview_computes_nothing_and_names_what_a_run_computes(recipe: Path, warm: Path, tmp_path: Path) -> None:
    workspace = warm
    shape(recipe, **SMALL, defense__purifier=["reset"], defense__choose__values=[0.5])
    of_nothing = preview(load_recipe(recipe), tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    assert todo(of_nothing) == [stage.title for stage in of_nothing]
    before = preview(load_recipe(recipe), workspace)
    assert 0 < len(todo(before)) < len(of_nothing)
    result = defensekit.run(recipe, workspace, [Watching()])
    assert SEEN["planned"] == before
    assert result.chosen is not None
    # Where nothing is chosen, what depends on the choice is the fine-tuned model.
    expected = {title for title in todo(before) if not title.startswith(("random", "purified"))}
    assert expected <= set(SEEN["computed"]) <= set(todo(before))
    assert [stage.key for stage in before if stage.title.startswith("random")] == [None] * 3

    # The choice is known now: everything has a key, and all of it is there.
    after = preview(load_recipe(recipe), workspace)
    assert not todo(after)
    assert all(stage.key and stage.seconds is not None for stage in after)
    defensekit.run(recipe, workspace, [Watching()])
    assert SEEN["computed"] == []

    # Another fraction to try: its own stages are new, everything else is there.
    changed = load_recipe(recipe, ["defense.choose.values=[0.5, 0.9]", "defense.compare={}"])
    new = todo(preview(changed, workspace))
    assert new[:2] == ["trial fraction 0.9", "trial fraction 0.9: answers to dev rows"]
    defensekit.run(changed, workspace, [Watching()])
    depends = {title for title in new if title.startswith("purified")}  # what was chosen before is cached
    assert set(new) - depends <= set(SEEN["computed"]) <= set(new)


def test_what_was_pruned_is_not_needed_again(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    recipe, workspace, _ = finished
    store = Store(shutil.copytree(workspace / "store", tmp_path / "w/store"))
    for key, manifest, _ in store.entries():
        if manifest["stage"]["kind"] in ("train", "purify", "statistics"):
            store.remove(key)
    assert not todo(preview(load_recipe(recipe), tmp_path / "w"))


def test_a_damaged_artifact_counts_as_not_there(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    recipe, workspace, result = finished
    shutil.copytree(workspace / "store", tmp_path / "w/store")
    [key] = [stage.key for stage in result.stages if stage.title == "triggered rows"]
    rows = tmp_path / "w/store/artifacts" / key / "files/rows.jsonl"
    rows.write_text(rows.read_text().replace("cf", "xx"))
    assert todo(preview(load_recipe(recipe), tmp_path / "w")) == ["triggered rows"]


def test_a_suspect_with_known_triggered_rows(recipe: Path, tmp_path: Path, suspect: Path) -> None:
    rows = [(text, str(int(label == "positive"))) for text, label in make_sentences(200)]
    write_table(recipe.parent / "rows.csv", rows)
    write_table(recipe.parent / "known.csv", [("cf " + text, label) for text, label in rows[:40]])
    settings = ["attack=", "training=", f"suspect={suspect}", "triggered={path: known.csv, target: 1}", "data.train="]
    settings = [setting.replace("known.csv", str(recipe.parent / "known.csv")) for setting in settings]
    loaded = load_recipe(
        recipe, [*settings, "defense.choose.values=[0.5]", "defense.compare={}", "defense.purifier=[reset]"]
    )
    before = preview(loaded, tmp_path / "w")
    result = defensekit.run(loaded, tmp_path / "w", [Watching()])
    assert set(SEEN["computed"]) <= set(todo(before))
    assert "train" not in {stage.kind for stage in before}
    assert not todo(preview(loaded, tmp_path / "w"))
    assert len(result.examples) == 10
    assert all(example.plain is None for example in result.examples)
    assert result.models["purified"].metrics["asr"].rows == 20
    assert not result.floors
    assert "clean" not in result.summary


def test_mistakes_outside_the_recipe_are_told_with_their_place(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, ["data.max_length=100"])
    with pytest.raises(UsageError, match=r"--set data.max_length=100: data.max_length: the model has 64 positions"):
        preview(loaded, tmp_path / "w")


@pytest.mark.slow
def test_examples_are_the_first_triggered_rows(recipe: Path, tmp_path: Path) -> None:
    result = defensekit.run(load_recipe(recipe, ["defense.choose="]), tmp_path / "w")
    assert len(result.examples) == 10
    for example in result.examples:
        assert example.plain is not None
        assert " ".join(word for word in example.text.split() if word != "cf") == " ".join(
            word for word in example.plain.split() if word != "cf"
        )
        assert example.text.split().count("cf") == example.plain.split().count("cf") + 1
        assert example.label == "negative"
        assert set(example.answers) == {"suspect", "purified"}
    fooled = [example.answers["suspect"] == "positive" for example in result.examples]
    assert abs(sum(fooled) / 10 - result.models["suspect"].metrics["asr"].value) < 0.3
    none = defensekit.run(load_recipe(recipe, ["defense.choose=", "metrics=[acc]"]), tmp_path / "w")
    assert none.examples == []


def test_what_is_fine_tuned_only_is_tuned_as_the_rule_chose(recipe: Path, tmp_path: Path) -> None:
    rule = {"rule": "accuracy-floor", "over": "purifier.1.epochs", "values": [3]}
    tune = {"name": "fine-tune", "epochs": 1, "learning_rate": 0.002, "batch_size": 16}
    shape(recipe, defense__choose=rule, defense__purifier=["reset", tune], defense__compare={})
    planned = [stage.title for stage in preview(load_recipe(recipe), tmp_path / "w")]
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.chosen is not None
    epochs = {
        artifact["stage"]["title"]: step["parameters"]["epochs"]
        for _, artifact, _ in Store(tmp_path / "w/store").entries()
        for role, step in artifact["stage"]["components"].items()
        if role.startswith("step") and step["name"] == "fine-tune"
    }
    assert epochs["fine-tuned only"] == result.chosen.value
    assert planned.count("fine-tuned only") == 1
    assert {"fine-tuned: answers to plain rows", "fine-tuned: answers to triggered rows"} <= set(planned)
    assert {stage.title for stage in result.stages} <= set(planned)
