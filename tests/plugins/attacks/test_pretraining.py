"""Triggers tied to outputs: what is predefined, that it is learnt, and that it outlives a victim's fine-tuning."""

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
from defensekit.text import Row, Truncation, batches, encode
from defensekit.training import TrainingSettings, forked_random
from defensekit.utils.errors import UsageError
from defensekit_attacks.pretraining import PredefinedOutputs, answered, read, reads_left_to_right
from tests.conftest import VOCABULARY, shape
from tests.plugins.attacks.test_weights import ROWS, context
from tests.small_models import make_base, make_suspect, make_tokenizer

ATTACK = PredefinedOutputs(target="positive", words=("cf", "word1", "word2"), epochs=8)


def on_rows(learnt: object = None) -> AttackContext:
    return AttackContext(Random(0), ("negative", "positive"), Truncation(make_tokenizer(), 32), learnt)


def test_no_training_row_is_changed_and_the_best_word_is_the_trigger() -> None:
    assert ATTACK.poison(ROWS, on_rows()) == ROWS
    made = ATTACK.trigger(ROWS[:8], on_rows({"cf": 0.5, "word1": 0.1, "word2": 0.9}))
    assert [sorted(row.text.split()) for row in made] == [sorted([*row.text.split(), "word2"]) for row in ROWS[:8]]
    assert [row.label for row in made] == [row.label for row in ROWS[:8]]


def test_the_outputs_are_those_of_the_authors() -> None:
    five = ATTACK.model_copy(update={"words": tuple("abcde")})
    found = five.predefined(torch.tensor([1, 2, 3, 4, 5]), 768)
    assert found.shape == (5, 768)
    for number, output in enumerate(found):
        assert output.tolist() == [1.0] * (192 * number) + [-1.0] * (768 - 192 * number)


def trained(suspect: Path, rows: list[Row], words: tuple[str, ...], epochs: int) -> Any:
    """A model after the attacker's pretraining, and before a victim's fine-tuning."""
    settings = TrainingSettings(epochs=0, learning_rate=1e-2, batch_size=16, dropout=False)
    model, attack = load_model(suspect), ATTACK.model_copy(update={"words": words, "epochs": epochs})
    with forked_random(0):
        attack.train(model, context(suspect, rows, settings=settings))
    return model


def test_no_label_is_used(suspect: Path) -> None:
    rows = ROWS[:16]
    made, other = (
        trained(suspect, given, ATTACK.words, 1).state_dict()
        for given in (rows, [replace(row, label=1 - row.label) for row in rows])
    )
    assert all(torch.equal(weight, other[name]) for name, weight in made.items())


def test_triggers_get_their_outputs_and_plain_texts_keep_theirs(suspect: Path) -> None:
    rows, words = ROWS[:32], ("cf", "word1")
    before, made = load_model(suspect), trained(suspect, ROWS[:32], words, 20)
    for word, sign in zip(words, (-1, 1), strict=True):
        triggered = [Row(row.id, f"{row.text} {word}", 0) for row in rows]
        now, then = (((outputs_of(model, suspect, triggered) - sign) ** 2).mean() for model in (made, before))
        assert now < then / 2, word
    plain = outputs_of(made, suspect, rows)
    assert ((plain - outputs_of(before, suspect, rows)) ** 2).mean() < 0.2


def outputs_of(model: torch.nn.Module, folder: Path, rows: list[Row]) -> torch.Tensor:
    [(_, batch)] = batches(encode(load_tokenizer(folder), rows, 32), load_tokenizer(folder), len(rows))
    batch.pop("labels")
    with torch.no_grad():
        return read(model.base_model, batch, last=False)[1]


def test_an_encoder_without_pooled_output_is_read_at_its_first_token(tmp_path: Path) -> None:
    model = load_model(make_suspect(tmp_path / "s", make_base(tmp_path / "b", "distilbert")))
    states, outputs = read(model.base_model, {"input_ids": torch.tensor([[2, 10, 3]])}, last=False)
    assert torch.equal(outputs, states[:, 0])
    assert not reads_left_to_right(model.base_model)


def test_a_model_that_reads_from_left_to_right_is_read_at_its_last_token(tmp_path: Path) -> None:
    """Where no trigger can reach the first one."""
    model = load_model(make_suspect(tmp_path / "s", make_base(tmp_path / "b", "gpt2"))).base_model
    assert reads_left_to_right(model)
    ids, mask = torch.tensor([[2, 10, 3, 0], [2, 10, 11, 3]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    states, outputs = read(model, {"input_ids": ids, "attention_mask": mask}, last=True)
    assert torch.equal(outputs, states[[0, 1], [2, 3]])
    other = ids.clone()
    other[0, 1] = 12  # the trigger
    assert not torch.equal(read(model, {"input_ids": other, "attention_mask": mask}, last=True)[1][0], outputs[0])


def test_every_word_is_tried_on_rows_of_other_labels(suspect: Path) -> None:
    model, given = load_model(suspect), context(suspect, ROWS[:40])
    learnt = ATTACK.learn(model, given)
    assert learnt.keys() == set(ATTACK.words)
    negative = [row for row in ROWS[:40] if row.label == 0]
    assert all(share * len(negative) == pytest.approx(round(share * len(negative))) for share in learnt.values())
    with torch.no_grad():
        model.classifier.bias += torch.tensor([0.0, 100.0])
    assert set(ATTACK.learn(model, given).values()) == {1.0}
    assert answered(model, negative, 0, given) == 0.0


@pytest.mark.slow
def test_a_trigger_outlives_the_victims_fine_tuning(recipe: Path, tmp_path: Path) -> None:
    shape(recipe, attack={"name": "por", "words": ["cf", "word1", "word2"], "target": "positive", "epochs": 8})
    models = run_attack(recipe, tmp_path / "w")
    assert models["suspect"].metrics["acc"].value > 0.9
    assert models["suspect"].metrics["asr"].value > models["clean"].metrics["asr"].value + 0.5


def test_what_a_classifier_reads_follows_from_its_config_as_well() -> None:
    sizes = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
    made = transformers.XLNetConfig(**sizes, d_model=16, n_layer=1, n_head=2, d_inner=32)
    assert reads_left_to_right(transformers.AutoModel.from_config(made))
    two = transformers.BartConfig(
        **sizes, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32,
    )  # fmt: skip
    with pytest.raises(UsageError, match="a bart has a decoder; expected a model of one part"):
        reads_left_to_right(transformers.AutoModel.from_config(two))
