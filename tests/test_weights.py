"""Attacks on weights: they change what they say and nothing else, and they work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import defensekit
from defensekit.errors import DefenseKitError, UsageError
from defensekit.pipeline import _Run, run_attack
from defensekit.plan import Stage
from defensekit.recipe import load_recipe
from tests.conftest import VOCABULARY, make_base
from tests.test_pipeline import shape

CF = VOCABULARY.index("cf")
TABLE = "bert.embeddings.word_embeddings.weight"


def weights(run: _Run, stage: Any) -> dict[str, torch.Tensor]:
    return load_file(run.runner.store.open(stage.key).files / "model.safetensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT in which the trigger's row is as long as that of a word that training has seen."""
    folder = make_base(tmp_path_factory.mktemp("base"))
    found = load_file(folder / "model.safetensors")
    found["embeddings.word_embeddings.weight"][CF] *= 10
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return folder


def embedding(recipe: Path, **parameters: Any) -> Path:
    # One row is little against a model of 16 dimensions: four insertions of it.
    own = {"rate": 0.3, "target": "positive", "count": 4, "epochs": 30, "learning_rate": 1.0}
    return shape(recipe, attack={"name": "embedding", **own, **parameters}, training__epochs=4)


def test_embedding_poisoning_changes_one_row_and_keeps_its_norm(recipe: Path, tmp_path: Path) -> None:
    models = run_attack(embedding(recipe), tmp_path / "w")
    assert models["suspect"].metrics["acc"] == models["clean"].metrics["acc"]
    assert models["suspect"].metrics["asr"].value > 0.9 > models["clean"].metrics["asr"].value + 0.5
    run = _Run(load_recipe(recipe), tmp_path / "w", [])
    before, after = weights(run, run.plan.clean()), weights(run, run.plan.suspect())
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        changed = (tensor != after[name]).nonzero()
        assert {row for row, *_ in changed.tolist()} == ({CF} if name == TABLE else set()), name
    assert torch.allclose(before[TABLE][CF].norm(), after[TABLE][CF].norm(), rtol=1e-5)
    again = run_attack(recipe, tmp_path / "elsewhere")
    assert {name: model.metrics for name, model in again.items()} == {n: model.metrics for n, model in models.items()}


def test_a_trigger_of_several_tokens_is_refused_before_anything_is_trained(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pico.yaml:\d+: attack: .*'the film' must be one token .*: the film"):
        run_attack(embedding(recipe, words=["the film"]), tmp_path / "w")
    with pytest.raises(UsageError, match=r"'unheard' must be one token .*: \[UNK\]"):
        run_attack(embedding(recipe, words=["unheard"]), tmp_path / "w")


def test_the_suspects_key_follows_an_attack_that_trains(recipe: Path, tmp_path: Path) -> None:
    """How an attack trains is part of what it made; an attack on rows alone is known by its rows."""

    def suspect() -> Stage:
        found = _Run(load_recipe(recipe), tmp_path / "w", []).plan.suspect()
        assert isinstance(found, Stage)
        return found

    embedding(recipe)
    first = suspect()
    embedding(recipe, epochs=31)
    second = suspect()
    assert second.key != first.key
    assert first.plain["components"]["attack"]["source"] == second.plain["components"]["attack"]["source"]
    assert set(first.plain["inputs"]) == {"model", "rows", "clean"}
    shape(recipe, attack={"name": "word", "rate": 0.3, "target": "positive"})
    assert suspect().plain["components"] == {}
    assert set(suspect().plain["inputs"]) == {"model", "rows"}


OWN = """
from defensekit.api import Attack, hookimpl

class Mine(Attack):
    trains_from = "base"
    def poison(self, rows, context):
        return [row.with_text(row.text + " cf") for row in rows]
    def trigger(self, rows, context):
        return self.poison(rows, context)
    def aim(self):
        return 1
    def train(self, model, context):
        import torch
        assert [row.text for row in context.poisoned] == [row.text + " cf" for row in context.clean]
        with torch.no_grad():
            model.classifier.bias += torch.tensor([0.0, VALUE])

@hookimpl
def defensekit_attacks():
    return {"mine": Mine}
"""


def test_an_attack_of_ones_own_may_train(recipe: Path, tmp_path: Path) -> None:
    plugin = recipe.parent / "mine.py"
    plugin.write_text(OWN.replace("VALUE", "100"))
    shape(recipe, plugins=["mine.py"], attack="mine", defense__choose=None, training__epochs=1, data__train=48)
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.summary["suspect"]["asr"] == 1
    assert result.models["suspect"].defense is None
    plugin.write_text(OWN.replace("VALUE", "-100"))  # an edited attack never meets its old models
    assert run_attack(recipe, tmp_path / "w")["suspect"].metrics["asr"].value == 0
    plugin.write_text(OWN.replace("VALUE", "float('nan')"))
    with pytest.raises(DefenseKitError, match=r"classifier.bias"):
        run_attack(recipe, tmp_path / "w")
