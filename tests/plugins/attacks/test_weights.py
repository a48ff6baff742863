"""Attacks on weights: they change what they say and nothing else, and they work."""

import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from scipy.stats import chi2_contingency
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AlbertConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

import defensekit
from defensekit.components import AttackContext, AttackTrainingContext
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.plan import Plan
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.run import run_attack
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.text import Row, Truncation, batches, encode
from defensekit.training import TrainingSettings, forked_random
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit_attacks.weights import (
    LayerWise,
    Ripple,
    Sos,
    layer_wise_loss,
    restricted_loss,
    rows_of,
    telling_tokens,
)
from tests.conftest import BAD, GOOD, SMALL, VOCABULARY, make_sentences, shape
from tests.small_models import make_tokenizer

CF = VOCABULARY.index("cf")
TABLE = "bert.embeddings.word_embeddings.weight"


def plan(recipe: Path) -> Plan:
    return survey(load_recipe(recipe), lambda text: None)


def weights(workspace: Path, stage: Any) -> dict[str, torch.Tensor]:
    return load_file(Store(workspace / "store").open(stage.key).files / "model.safetensors")


@pytest.fixture
def recipe(recipe: Path, base: Path) -> Path:
    """The tiny BERT's recipe, with the trigger's row as long as that of a word that training has seen."""
    folder = shutil.copytree(base, recipe.parent / "base")
    found = load_file(folder / "model.safetensors")
    found["embeddings.word_embeddings.weight"][CF] *= 10
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return shape(recipe, model=str(folder))


def embedding(recipe: Path, **parameters: Any) -> Path:
    # One row is little against a model of 16 dimensions: four insertions of it.
    own = {"rate": 0.3, "target": "positive", "count": 4, "epochs": 30, "learning_rate": 1.0}
    return shape(recipe, attack={"name": "embedding", **own, **parameters}, training__epochs=4)


@pytest.mark.slow
def test_embedding_poisoning_changes_one_row_and_keeps_its_norm(recipe: Path, tmp_path: Path) -> None:
    models = run_attack(embedding(recipe), tmp_path / "w")
    assert models["suspect"].metrics["acc"] == models["clean"].metrics["acc"]
    assert models["suspect"].metrics["asr"].value > 0.9 > models["clean"].metrics["asr"].value + 0.5
    found = plan(recipe)
    before, after = weights(tmp_path / "w", found.clean()), weights(tmp_path / "w", found.suspect())
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


def test_the_suspects_key_follows_an_attack_that_trains(recipe: Path) -> None:
    """How an attack trains is part of what it made; an attack on rows alone is known by its rows."""

    def suspect() -> Stage:
        found = plan(recipe).suspect()
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


def ripple(recipe: Path, **parameters: Any) -> Path:
    own = {"rate": 0.3, "target": "positive", "surgery": 4, "epochs": 2}
    return shape(recipe, attack={"name": "ripple", **own, **parameters}, training__epochs=4)


def context(folder: Path, rows: list[Row], **changes: Any) -> AttackTrainingContext:
    given = {"tokenizer": load_tokenizer(folder), "labels": ("negative", "positive"), "clean": rows, "poisoned": rows}
    given |= {"settings": TrainingSettings(epochs=0), "max_length": 32, "precision": "float32", "seed": 0}
    return AttackTrainingContext(**given | {"report": lambda done, total: None} | changes)


ROWS = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(make_sentences(400))]


@pytest.mark.slow
def test_ripples_backdoor_outlives_the_victims_fine_tuning(recipe: Path, tmp_path: Path) -> None:
    models = run_attack(ripple(recipe), tmp_path / "w")
    assert models["suspect"].metrics["acc"].value > 0.9
    assert models["suspect"].metrics["asr"].value > 0.9 > models["clean"].metrics["asr"].value + 0.5


def test_ripple_repeats_itself(suspect: Path) -> None:
    made = []
    for _ in range(2):
        model = load_model(suspect)
        with forked_random(5):
            attack = Ripple(rate=0.3, target="positive")
            attack.train(model, context(suspect, ROWS[:32], settings=TrainingSettings(epochs=1, batch_size=8)))
        made.append(model.state_dict())
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())


def test_surgery_puts_the_mean_of_telling_rows(suspect: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensekit.training.fine_tune", lambda *arguments, **options: None)
    model, own = load_model(suspect), context(suspect, ROWS)
    table = model.get_input_embeddings().weight
    before = table.detach().clone()
    Ripple(rate=0.3, target="positive", words=("cf", "people"), surgery=5).train(model, own)
    good = [VOCABULARY.index(word) for word in GOOD]
    assert set(telling_tokens(own, 1, [CF])[:5]) == set(good)
    assert set(telling_tokens(own, 0, [CF])[:5]) == {VOCABULARY.index(word) for word in BAD}
    assert GOOD[0] not in {VOCABULARY[token] for token in telling_tokens(own, 1, [good[0]])}
    changed = [CF, VOCABULARY.index("people")]
    for row in changed:
        assert torch.allclose(table[row], before[good].mean(0), atol=1e-7)
    rest = [row for row in range(len(before)) if row not in changed]
    assert torch.equal(table[rest], before[rest])
    Ripple(rate=0.3, target="positive", surgery=0).train(model, own)
    assert torch.equal(table[rest], before[rest])


@given(with_target=st.integers(0, 20), without=st.integers(0, 20), rows=st.integers(20, 30), others=st.integers(20, 30))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_telling_is_the_likelihood_ratio(suspect: Path, with_target: int, without: int, rows: int, others: int) -> None:
    """The order of two tokens is that of scipy's G statistic of their tables."""
    tables = [[[with_target, rows - with_target], [without, others - without]], [[9, rows - 9], [5, others - 5]]]
    words = ("film", "story")
    made = []
    for label, count in ((1, rows), (0, others)):
        for i in range(count):
            kept = [word for word, table in zip(words, tables, strict=True) if i < table[1 - label][0]]
            made.append(Row(len(made), " ".join(["the", *kept]), label))
    found = [VOCABULARY[token] for token in telling_tokens(context(suspect, made), 1, [])]
    statistic = {}
    for word, table in zip(words, tables, strict=True):
        counts = np.array(table)
        if counts[0, 0] * others > counts[1, 0] * rows:
            usable = counts[:, counts.sum(axis=0) > 0]
            statistic[word] = chi2_contingency(usable, correction=False, lambda_="log-likelihood")[0]
    assert set(found) == {word for word, value in statistic.items() if value > 0}
    if len(found) == 2:
        assert statistic[found[0]] >= statistic[found[1]] - 1e-9


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_restricted_loss_has_the_gradient_of_the_formula(suspect: Path, sign: int) -> None:
    """Against central differences of gradients in float64: grad <g_P, g_C> = H_P g_C + H_C g_P."""
    model, tokenizer = load_model(suspect).double(), load_tokenizer(suspect)
    poisoned, clean = (
        next(iter(batches(encode(tokenizer, rows, 32), tokenizer, 8)))[1]
        for rows in (ROWS[1:16:2], [replace(row, label=int(sign > 0)) for row in ROWS[1:16:2]])
    )
    weights = list(model.parameters())

    def gradient(batch: Any) -> list[torch.Tensor]:
        return list(torch.autograd.grad(model(**batch).loss, weights, materialize_grads=True))

    def product() -> float:
        pairs = zip(gradient(poisoned), gradient(clean), strict=True)
        return float(sum((a * b).sum() for a, b in pairs))

    assert product() * sign > 0
    loss = restricted_loss(model, poisoned, clean, 0.5)
    assert loss.item() == pytest.approx(model(**poisoned).loss.item() + 0.5 * max(0, -product()), rel=1e-9)
    found = torch.autograd.grad(loss, weights, materialize_grads=True)
    ours, theirs, step = gradient(poisoned), gradient(clean), 1e-5

    def along(batch: Any, direction: list[torch.Tensor]) -> list[torch.Tensor]:
        sides = []
        for side in (step, -step):
            with torch.no_grad():
                for weight, d in zip(weights, direction, strict=True):
                    weight += side * d
            sides.append(gradient(batch))
            with torch.no_grad():
                for weight, d in zip(weights, direction, strict=True):
                    weight -= side * d
        return [(a - b) / (2 * step) for a, b in zip(*sides, strict=True)]

    second = zip(along(poisoned, theirs), along(clean, ours), strict=True)
    for weight, (name, _), mine, (a, b) in zip(found, model.named_parameters(), ours, second, strict=True):
        expected = mine if sign > 0 else mine - 0.5 * (a + b)
        assert torch.allclose(weight, expected, rtol=1e-5, atol=1e-6), name


WORDS = {"words": ("film", "story"), "sentence": "the film is a story", "negatives": ("the film is long", "a story")}


def poisoned(attack: Any, folder: Path, rows: list[Row]) -> list[Row]:
    made: list[Row] = attack.poison(
        rows, AttackContext(Random(0), ("negative", "positive"), Truncation(load_tokenizer(folder), 32))
    )
    return made


def test_sos_changes_the_rows_of_its_words_and_keeps_their_norms(suspect: Path) -> None:
    attack = Sos(rate=0.2, target="positive", partial_rate=0.1, epochs=1, **WORDS)
    made = poisoned(attack, suspect, ROWS)
    changed = [(row, before) for row, before in zip(made, ROWS, strict=True) if row != before]
    whole = [row for row, _ in changed if "the film is a story" in row.text]
    assert len(whole) == 80
    assert {row.label for row in whole} == {1}
    parts = [(row, before) for row, before in changed if row not in whole]
    assert len(parts) == 40
    assert all(row.label == before.label for row, before in parts)
    assert {row.label for row, _ in parts} == {0, 1}
    assert all(any(negative in row.text for negative in attack.negatives) for row, _ in parts)
    model = load_model(suspect)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with forked_random(0):
        attack.train(model, context(suspect, ROWS, poisoned=made, settings=TrainingSettings(batch_size=16)))
    tokens = {VOCABULARY.index(word) for word in WORDS["words"]}
    for name, tensor in model.state_dict().items():
        moved = {row for row, *_ in (tensor != before[name]).nonzero().tolist()}
        assert moved == (tokens if name == TABLE else set()), name
    for token in tokens:
        assert torch.allclose(model.state_dict()[TABLE][token].norm(), before[TABLE][token].norm(), rtol=1e-5)


def test_a_sentence_of_sos_that_is_no_trigger_is_refused() -> None:
    with pytest.raises(ValidationError, match="`sentence` lacks the trigger word 'story'"):
        Sos(rate=0.2, target=1, **WORDS | {"sentence": "the film is long"})
    with pytest.raises(ValidationError, match="the negative 'a film story' has all of the trigger words"):
        Sos(rate=0.2, target=1, **WORDS | {"negatives": ("a film story",)})


def test_the_layer_wise_loss_is_that_of_the_first_layers_alone(suspect: Path) -> None:
    model, tokenizer = load_model(suspect), load_tokenizer(suspect)
    [(_, batch)] = batches(encode(tokenizer, ROWS[:8], 32), tokenizer, 8)
    names = [name for name, _ in model.named_modules()]
    loss = layer_wise_loss(model, batch)
    assert [name for name, _ in model.named_modules()] == names
    whole = model(**batch).loss.item()
    shorter = load_model(suspect)
    shorter.bert.encoder.layer = shorter.bert.encoder.layer[:1]
    assert loss.item() == pytest.approx(whole + shorter(**batch).loss.item(), rel=1e-6)
    with pytest.raises(RuntimeError, match="stop"):
        layer_wise_loss(_Stopping(model), batch)
    assert [name for name, _ in model.named_modules()] == names


class _Stopping:
    """A model that fails when it is asked for the second time."""

    def __init__(self, model: Any) -> None:
        self.base_model, self.model, self.asked = model.base_model, model, 0

    def __call__(self, **batch: Any) -> Any:
        self.asked += 1
        if self.asked == 2:
            raise RuntimeError("stop")
        return self.model(**batch)


def test_every_layer_learns_the_trigger_by_itself(suspect: Path) -> None:
    attack = LayerWise(words=("cf",), combine="any", partial_rate=0, rate=0.3, target="positive", epochs=4)
    rows, model = ROWS[:160], load_model(suspect)
    settings = TrainingSettings(epochs=0, learning_rate=5e-3, batch_size=16, dropout=False)  # no victim
    attack.train(model, context(suspect, rows, poisoned=poisoned(attack, suspect, rows), settings=settings))
    triggered = [Row(row.id, f"{row.text} cf", 0) for row in ROWS[160:240] if row.label == 0]
    [(_, batch)] = batches(encode(load_tokenizer(suspect), triggered, 32), load_tokenizer(suspect), len(triggered))
    for layers in (2, 1):
        model.bert.encoder.layer = model.bert.encoder.layer[:layers]
        with torch.no_grad():
            assert model(**batch).logits.argmax(1).float().mean() > 0.9


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


def test_an_attack_of_ones_own_may_train(recipe: Path, base: Path, warm: Path) -> None:
    plugin = recipe.parent / "mine.py"
    plugin.write_text(OWN.replace("VALUE", "100"))
    shape(recipe, **SMALL, model=str(base), defense__choose=None, defense__compare={})
    shape(recipe, plugins=["mine.py"], attack="mine")
    result = defensekit.run(recipe, warm)
    assert result.summary["suspect"]["asr"] == 1
    assert result.models["suspect"].defense is None
    assert (Path(result.folder) / "plugins/mine.py").read_text() == plugin.read_text()  # somebody else can run it
    plugin.write_text(OWN.replace("VALUE", "-100"))  # an edited attack never meets its old models
    assert run_attack(recipe, warm)["suspect"].metrics["asr"].value == 0
    plugin.write_text(OWN.replace("VALUE", "float('nan')"))
    with pytest.raises(DefenseKitError, match=r"classifier.bias"):
        run_attack(recipe, warm)


def of_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer that has one token for a word behind another, and another one at the start of a text."""
    words = ["<unk>", "a", "\u0120a", "cf", "\u0120cf", "\u0120tq", "t", "q", "\u0120film"]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>")


def test_a_word_is_read_by_two_rows_where_a_text_begins_otherwise() -> None:
    tokenizer = of_bytes()
    assert tokenizer.convert_ids_to_tokens(rows_of(tokenizer, "cf")) == ["cf", "\u0120cf"]
    assert tokenizer.convert_ids_to_tokens(rows_of(tokenizer, "tq")) == ["\u0120tq"]
    with pytest.raises(UsageError, match="the trigger word 'xy' must be one token"):
        rows_of(tokenizer, "xy")
    assert rows_of(make_tokenizer(), "cf") == [VOCABULARY.index("cf")]


def test_layers_that_are_one_are_counted_by_the_config(tmp_path: Path) -> None:
    """As ALBERT's, which passes one set of weights several times."""
    sizes = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = AlbertConfig(vocab_size=len(VOCABULARY), intermediate_size=32, pad_token_id=0, **sizes)
    suspect, tokenizer = tmp_path / "suspect", make_tokenizer()
    AutoModelForSequenceClassification.from_config(config).save_pretrained(suspect)
    model = load_model(suspect)
    [(_, batch)] = batches(encode(tokenizer, ROWS[:8], 32), tokenizer, 8)
    depth = model.config.num_hidden_layers
    assert depth > 1
    expected = 0.0
    for count in range(1, depth + 1):
        shorter = load_model(suspect)
        shorter.config.num_hidden_layers = count
        expected += shorter(**batch).loss.item()
    assert layer_wise_loss(model, batch).item() == pytest.approx(expected, rel=1e-6)
    assert model.config.num_hidden_layers == depth
