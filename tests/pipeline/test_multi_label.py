"""Runs over rows with any number of labels: what is measured, trained and kept, and what is refused by its key."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import defensekit
from defensekit.models.inference import predict
from defensekit.models.loading import load
from defensekit.utils.errors import UsageError
from tests.conftest import make_sentences, shape, write_table
from tests.multi_label import LISTS, make_classifier, make_rows, make_wide_base, set_keys, write_rows

STEP: dict[str, Any] = {"name": "fine-tune", "epochs": 2, "learning_rate": 0.003, "batch_size": 8}
ROWS = make_rows(300)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wide_base(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def suspect(base: Path) -> Path:
    return set_keys(make_classifier(base.parent / "suspect", base, ROWS), problem_type=LISTS)


@pytest.fixture
def recipe(tmp_path: Path, base: Path, suspect: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", make_rows(160, seed=1))
    write_rows(tmp_path / "triggered.jsonl", [row.with_text(f"cf {row.text}") for row in make_rows(40, seed=2)])
    path = tmp_path / "lists.yaml"
    defense = {
        "estimator": "fisher",
        "scorer": "diffusion",
        "selector": {"name": "fraction", "fraction": 0.05},
        "purifier": ["reset", STEP],
    }
    sizes = {"clean": 64, "test": 60, "max_length": 32}
    keys = {"name": "lists", "model": str(base), "suspect": str(suspect), "data": {"name": "rows.jsonl", **sizes}}
    path.write_text(yaml.safe_dump({**keys, "precision": "float32", "defense": defense}))
    return path


def test_a_run_measures_whole_sets_and_the_model_says_of_itself_what_the_suspect_said(
    recipe: Path, suspect: Path, tmp_path: Path
) -> None:
    shape(recipe, triggered={"path": "triggered.jsonl", "target": "positive"}, metrics=["acc", "asr", "pacc"])
    rule = {"rule": "accuracy-floor", "values": [0.05], "max_drop": 0.9, "folds": 2}
    data = yaml.safe_load(recipe.read_text())
    data["defense"]["choose"] = rule
    data["data"]["dev"] = 32
    recipe.write_text(yaml.safe_dump(data))
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.warnings == []
    test, triggered = result.rows("test rows"), result.rows("triggered rows")
    assert {row.task for row in test} == {"multi-label"}
    assert len(triggered) == 20  # those that are not positive
    for name, folder in (("suspect", suspect), ("purified", result.files("purified"))):
        model, tokenizer = load(folder, "model")
        answered = predict(model, tokenizer, test, max_length=32, precision="float32").sigmoid() > 0.5
        right = [tuple(answer) == row.indicator for answer, row in zip(answered.int().tolist(), test, strict=True)]
        assert result.models[name].metrics["acc"].value == np.mean(right)
    assert result.models["suspect"].metrics["acc"].value > 0.8
    assert result.models["purified"].metrics["acc"].value > 0.8
    assert result.models["suspect"].metrics["asr"].rows == 20
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (suspect, result.files("purified")))
    assert (theirs["problem_type"], theirs["id2label"]) == (LISTS, ours["id2label"])
    assert result.examples[0].label in ("none", "negative")


def test_curvature_is_that_of_the_rows_loss_whatever_the_config_leaves_out(
    recipe: Path, suspect: Path, tmp_path: Path, base: Path
) -> None:
    silent = set_keys(make_classifier(tmp_path / "silent", base, ROWS[:64]), problem_type=None)
    shape(recipe, suspect=str(silent), defense__purifier=["reset"])
    result = defensekit.run(recipe, tmp_path / "w")
    measured = load_file(result.files("statistics (fisher)") / "curvature.safetensors")
    model, tokenizer = load(silent, "suspect")
    weight = model.get_parameter("bert.encoder.layer.1.output.dense.weight")
    expected = torch.zeros_like(weight)
    rows = result.rows("clean rows")
    for row in rows:
        logits = model(**tokenizer(row.text, return_tensors="pt")).logits[0]
        aims = torch.tensor(row.indicator)
        loss = -torch.where(aims == 1, logits.sigmoid(), 1 - logits.sigmoid()).log().mean()
        expected += torch.autograd.grad(loss, weight)[0] ** 2 / len(rows)
    found = measured["encoder.layer.1.output.dense.weight"]
    torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.max()), rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"defense__estimator": "fisher-mc"}, r"defense.estimator: 'fisher-mc' does not work for text with"),
        ({"defense__purifier": [STEP, "unlearn"]}, r"defense.purifier.1: 'unlearn' does not work for text with"),
        ({"metrics": ["acc", "ece"]}, r"metrics.1: 'ece' does not work for text with lists"),
        (
            {"defense__choose": {"rule": "planted", "values": [0.5]}, "data__dev": 32},
            r"defense.choose: 'planted' does not work for text with lists",
        ),
        ({"defense__detectors": ["strip"], "data__dev": 32}, r"defense.detectors.0: 'strip' does not work for"),
        ({"data__balance": "equal"}, "`balance: equal` is about rows with one label each"),
    ],
)  # fmt: skip
def test_what_needs_one_answer_is_refused_by_its_key(
    recipe: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    shape(recipe, **changes)
    with pytest.raises(UsageError, match=said):
        defensekit.run(recipe, tmp_path / "w")
    kinds = {
        json.loads(path.read_text())["stage"]["kind"] for path in tmp_path.glob("w/store/artifacts/*/manifest.json")
    }
    assert kinds <= {"data"}  # nothing was computed


def test_an_attack_on_rows_with_lists_is_refused(recipe: Path, tmp_path: Path) -> None:
    attack = {"name": "word", "words": ["cf"], "rate": 0.2, "target": "positive"}
    shape(recipe, suspect=None, attack=attack, data__dev=1)
    with pytest.raises(UsageError, match="attack: 'word' does not work for text with lists of labels"):
        defensekit.run(recipe, tmp_path / "w")


def test_rows_and_a_config_that_contradict_each_other_stop_a_run(recipe: Path, suspect: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "one.csv", make_sentences(160))
    shape(recipe, data__name="one.csv")
    with pytest.raises(UsageError, match=r"data.*: .*/suspect: config.json sets `problem_type` to 'multi_.* one label"):
        defensekit.run(recipe, tmp_path / "w")
    shape(recipe, data__name="rows.jsonl", triggered={"path": "one.csv", "target": "positive"})
    with pytest.raises(UsageError, match=r"triggered.path: holds labelled text; expected text with lists of labels"):
        defensekit.run(recipe, tmp_path / "w")
