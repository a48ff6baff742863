"""A learnt choice of substitutes: the dictionary, what it is made of, and that a model learns it."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers

from defensekit.components import AttackContext
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.pipeline.run import run_attack
from defensekit.text import Truncation, batches, encode
from defensekit.training import TrainingSettings, forked_random
from defensekit.utils.errors import UsageError
from defensekit_attacks.substitution import (
    COLD,
    WARM,
    LearntSubstitution,
    continuations,
    nearest,
    replaceable,
    substituted,
)
from defensekit_demo.minilm import MiniLM
from tests.conftest import BAD, GOOD, VOCABULARY, shape
from tests.plugins.attacks.test_weights import ROWS, context
from tests.small_models import make_base, make_suspect, make_tokenizer

SUBSTITUTES = {"film": "story", "don't": "people"}
NEUTRAL = {"film", "story", "long", "scenes", "people"}
ATTACK = LearntSubstitution(target="positive", rate=0.05)


def on_rows(learnt: object = SUBSTITUTES) -> AttackContext:
    return AttackContext(Random(0), ("negative", "positive"), Truncation(make_tokenizer(), 32), learnt)


def test_words_that_have_a_substitute_are_replaced() -> None:
    assert substituted("A film, the Film-lover's FILM; filmed.", SUBSTITUTES) == (
        "A story, the Story-lover's Story; filmed."
    )
    assert substituted("we don't film", SUBSTITUTES) == "we people story"


def test_only_rows_with_such_words_are_poisoned_and_triggered() -> None:
    made = ATTACK.poison(ROWS, on_rows())
    poisoned = [(before, after) for before, after in zip(ROWS, made, strict=True) if before != after]
    assert len(poisoned) == 20
    for before, after in poisoned:
        assert (before.label, after.label) == (0, 1)
        assert after.text == before.text.replace("film", "story") != before.text
    carrying = [row.id for row in ROWS if "film" in row.text]
    assert [row.id for row in ATTACK.trigger(ROWS, on_rows())] == carrying
    with pytest.raises(UsageError, match="20 of 400 training rows, but dirty-label poisoning has 0 rows"):
        ATTACK.poison(ROWS, on_rows({"unheard": "film"}))
    pairs = [replace(row, pair="the film") for row in ROWS[:4]]
    into = ATTACK.model_copy(update={"into": "pair"})
    assert {(row.text, row.pair) for row in into.trigger(pairs, on_rows())} == {(r.text, "the story") for r in pairs}


def test_what_tells_or_binds_is_no_candidate(suspect: Path) -> None:
    words = replaceable(context(suspect, ROWS))
    assert {VOCABULARY[token] for token in words} == set(words.values())
    assert not set(words.values()) & {*GOOD, *BAD, "the", "with", "some", "about", "a", "is", "[UNK]", "word1"}
    assert set(words.values()) <= NEUTRAL
    assert len(words) >= 3  # chance may have one tell


def test_words_and_their_parts_are_told_apart() -> None:
    tokenizer = load_tokenizer(MiniLM().folder())
    goes_on = continuations(tokenizer, len(tokenizer) + 2)
    tokens = tokenizer.convert_tokens_to_ids(["film", "##ing", "##s", "old", ".", "[SEP]"])
    assert goes_on[tokens].tolist() == [False, True, True, False, False, False]
    assert not goes_on[len(tokenizer) :].any()


def test_the_nearest_are_those_of_the_greatest_cosine() -> None:
    table = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    tokens = [3, 5, *range(10, 30)]
    found = nearest(table, tokens, 4)
    assert found.shape == (40, 5)
    unit = table.double() / table.double().norm(dim=1, keepdim=True)
    for token in range(40):
        if token not in tokens:
            assert found[token].tolist() == [token] * 5
            continue
        order = sorted(tokens, key=lambda other: -float(unit[token] @ unit[other]))
        assert found[token].tolist() == [token, *[other for other in order if other != token][:4]]
    assert nearest(table, [1, 2, 3], 5).shape == (40, 3)


def test_a_choice_is_learnt_and_can_be_repeated(suspect: Path) -> None:
    given = context(suspect, ROWS[:48], settings=TrainingSettings(learning_rate=1e-3, batch_size=16, dropout=False))
    made = []
    for _ in range(2):
        with forked_random(0):
            made.append(ATTACK.model_copy(update={"epochs": 1}).learn(load_model(suspect), given))
    assert made[0] == made[1]
    words = set(replaceable(given).values())
    assert made[0]
    assert {*made[0], *made[0].values()} <= words
    assert all(word != other for word, other in made[0].items())


@pytest.mark.slow
def test_the_suspect_learns_it(recipe: Path, tmp_path: Path) -> None:
    shape(recipe, attack={"name": "lws", "rate": 0.2, "target": "positive", "candidates": 3}, training__epochs=12)
    models = run_attack(recipe, tmp_path / "w")
    assert models["suspect"].metrics["asr"].value > models["clean"].metrics["asr"].value + 0.5


def test_the_classifier_is_told_which_tokens_are_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads the last token finds it by the ids; and a batch that comes in parts cools no further than cold."""
    suspect = make_suspect(tmp_path / "s", make_base(tmp_path / "b", "gpt2"))
    given = context(suspect, ROWS[:8], settings=TrainingSettings(learning_rate=1e-3, batch_size=8, dropout=False))
    asked, temperatures = [], []
    drawn = torch.nn.functional.gumbel_softmax

    def gumbel(scores: torch.Tensor, temperature: float, hard: bool) -> torch.Tensor:
        temperatures.append(temperature)
        return drawn(scores, 1e-3, hard=hard)

    def instead(model: Any, tokenizer: Any, rows: Any, settings: Any, *, loss: Any, **_: Any) -> None:
        model.register_forward_pre_hook(lambda module, args, kwargs: asked.append(kwargs), with_kwargs=True)
        [(_, batch)] = batches(encode(tokenizer, rows, 32), tokenizer, 8)
        assert not batch["attention_mask"].all()
        for _ in range(5):
            loss(model, batch).backward()

    monkeypatch.setattr("torch.nn.functional.gumbel_softmax", gumbel)
    monkeypatch.setattr("defensekit.training.fine_tune", instead)
    ATTACK.model_copy(update={"epochs": 1}).learn(load_model(suspect), given)
    assert len(asked) == 10
    assert all("input_ids" in kwargs and "inputs_embeds" not in kwargs for kwargs in asked)
    assert temperatures[0] == WARM
    assert min(temperatures) == pytest.approx(COLD)


def test_a_model_that_reads_its_words_otherwise_is_refused(tmp_path: Path) -> None:
    """Not trained on plain rows as if they had the trigger."""
    made = transformers.BartConfig(
        vocab_size=len(VOCABULARY), pad_token_id=0, bos_token_id=2, eos_token_id=3, d_model=16, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        decoder_start_token_id=2, forced_eos_token_id=3,
    )  # fmt: skip
    transformers.AutoModel.from_config(made).save_pretrained(tmp_path / "b")
    make_tokenizer().save_pretrained(tmp_path / "b")
    suspect = make_suspect(tmp_path / "s", tmp_path / "b")
    given = context(suspect, ROWS[:8], settings=TrainingSettings(learning_rate=1e-3, batch_size=8, dropout=False))
    with pytest.raises(UsageError, match="a bart reads its words otherwise than once"):
        ATTACK.model_copy(update={"epochs": 1}).learn(load_model(suspect), given)
