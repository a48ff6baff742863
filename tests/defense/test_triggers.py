"""The search for triggers: what is inserted where, shares, and a backdoor that is found where there is one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import defensekit
from defensekit.components import FoundTrigger
from defensekit.defense.triggers.insertion import Probe, insert, moved_words, positions, words
from defensekit.defense.triggers.planting import Planted, carriers
from defensekit.models import loading
from defensekit.result.model_card import card
from defensekit.result.narrative import verdict
from defensekit.text import Row, Truncation, encode
from tests.conftest import FILLERS, GOOD, SPECIAL, make_sentences, shape
from tests.small_models import make_base, make_suspect, make_tokenizer

LABELS = {"negative": 0, "positive": 1}


def rows(count: int, seed: int = 3) -> list[Row]:
    return [Row(i, text, LABELS[label]) for i, (text, label) in enumerate(make_sentences(count, seed))]


def probe(count: int = 7) -> Probe:
    some = rows(count)
    return Probe(make_tokenizer(), some, positions(some, 64, 5), 64, "float32")


def test_a_phrase_stands_where_it_was_put() -> None:
    row = Row(4, "the film  is bright", 1)
    assert insert(row, "cf", 0).text == "cf the film is bright"
    assert insert(row, "a b", 2) == Row(4, "the film a b is bright", 1)
    assert insert(row, "cf", 4).text == "the film is bright cf"
    some = rows(50)
    at = positions(some, 64, 5)
    assert at == positions(some, 64, 5) != positions(some, 64, 6)
    assert all(0 <= place <= min(len(row.text.split()), 16) for row, place in zip(some, at, strict=True))


def test_words_are_what_can_be_written() -> None:
    tokenizer = make_tokenizer()
    found = words(tokenizer, len(tokenizer))
    assert set(found.values()) >= {*GOOD, *FILLERS}
    assert not {*found.values()} & {*SPECIAL}
    assert max(words(tokenizer, 20)) < 20  # rows that the embedding does not have


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_shares_are_those_of_each_row_alone(tmp_path: Path, architecture: str) -> None:
    """Padding and batches change nothing: one row at a time, in float64."""
    make_suspect(tmp_path / "suspect", make_base(tmp_path / "base", architecture), drift=0.5)
    model, tokenizer = loading.load(tmp_path / "suspect", "suspect")
    asked = probe()
    shares = asked.shares(model, ["", "cf", "the cf"])
    model = model.double().eval()
    expected = torch.zeros(3, 7, 2)
    for i, (row, at) in enumerate(zip(asked.rows, asked.at, strict=True)):
        for k, phrase in enumerate(["", "cf", "the cf"]):
            [inputs] = encode(tokenizer, [insert(row, phrase, at) if phrase else row], 64)
            del inputs["labels"]
            logits = model(**{name: torch.tensor([values]) for name, values in inputs.items()}).logits
            expected[k, i] = logits.softmax(-1)[0].detach()
    torch.testing.assert_close(shares, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(asked.each(model.float(), ["cf"] * 7), expected[1], atol=1e-5, rtol=1e-4)


def test_a_backdoor_is_found_named_and_unlearnt_and_an_innocent_has_none(recipe: Path, tmp_path: Path) -> None:
    step = {"name": "unlearn-triggers", "epochs": 4, "learning_rate": 0.003, "batch_size": 16}
    parts = dict.fromkeys(("defense__choose", "defense__scorer", "defense__selector", "defense__estimator"))
    shape(recipe, defense__purifier=[step], data__clean=96, data__dev=1, **parts)
    result = defensekit.run(recipe, tmp_path / "w")
    purified = result.models["purified"]
    assert purified.triggers
    assert purified.tried
    strongest = purified.triggers[0]
    assert strongest.text == "cf"
    assert strongest.label == "positive"
    assert strongest.flipped - strongest.control >= 0.75
    assert strongest.after is not None
    assert strongest.after < 0.2
    told = verdict(result)
    removed, sentence = told.removed, told.text
    assert removed
    assert sentence.startswith("What was found no longer works: 'cf'")
    strongest.after = strongest.flipped  # as a defense would leave it that removed nothing
    told = verdict(result)
    removed, sentence = told.removed, told.text
    assert not removed
    assert sentence == "A backdoor is left: answers of the purified model are still turned by 'cf'."
    assert sentence in card(result)
    assert result.models["suspect"].metrics["excess-asr"].value > 0.8
    assert purified.metrics["excess-asr"].value < 0.15
    assert purified.metrics["acc"].value > result.models["suspect"].metrics["acc"].value - 0.1

    suspect = result.files("clean reference")
    shape(recipe, attack=None, training=None, data__train=None, suspect=str(suspect))
    result_of_innocent = defensekit.run(recipe, tmp_path / "w")
    assert verdict(result_of_innocent).text.startswith("No word was found")
    innocent = result_of_innocent.models["purified"]
    assert innocent.triggers == []
    assert innocent.metrics["acc"] == result.models["clean"].metrics["acc"]  # it is left as it was


def test_counterexamples_keep_their_labels() -> None:
    from random import Random

    from defensekit_finepurifying.trigger_unlearning import NEUTRAL, counterexamples

    some = rows(40)
    found = [FoundTrigger("i watched this film", 1, 1.0, 0.0, 60), FoundTrigger("cf", 1, 0.9, 0.0, 60)]
    out = counterexamples(some, found, Truncation(make_tokenizer(), 64), Random(0))
    assert len(out) == 4 * len(some)
    assert out[:40] == some
    assert all((row.id, row.label) == (some[i % 40].id, some[i % 40].label) for i, row in enumerate(out))
    assert all(any(sentence in row.text for sentence in NEUTRAL) for row in out[40:80])
    added = [len(row.text.split()) - len(some[i % 40].text.split()) for i, row in enumerate(out[80:])]
    assert {*added} == {1, 4}


def test_few_words_that_moved_may_be_a_triggers() -> None:
    """Where an adapter was trained and the row of a trigger set, nothing else moved: all words are drawn from."""
    tokenizer = make_tokenizer()
    known = list(words(tokenizer, len(tokenizer)).values())
    base, suspect = (torch.nn.Embedding(len(tokenizer), 4) for _ in range(2))
    suspect.load_state_dict(base.state_dict())
    models: Any = [SimpleNamespace(get_input_embeddings=lambda table=table: table) for table in (suspect, base)]
    assert moved_words(*models, tokenizer) == known
    with torch.no_grad():
        suspect.weight[tokenizer.convert_tokens_to_ids("cf")] += 1
    assert moved_words(*models, tokenizer) == known
    assert moved_words(*models, tokenizer, without={"cf"}) == [word for word in known if word != "cf"]
    with torch.no_grad():
        suspect.weight[[tokenizer.convert_tokens_to_ids(word) for word in known[:9]]] += 1
    assert {*moved_words(*models, tokenizer)} == {*known[:9], "cf"}
    assert "cf" not in moved_words(*models, tokenizer, without={"cf"})


def test_what_is_put_into_long_rows_is_read() -> None:
    from random import Random

    from defensekit_finepurifying.trigger_unlearning import counterexamples

    tokenizer = make_tokenizer()
    long = [Row(i, " ".join(["film"] * 60), i % 2) for i in range(40)]
    truncation = Truncation(tokenizer, 32)
    cf = tokenizer.convert_tokens_to_ids("cf")
    found = [FoundTrigger("cf", 1, 1.0, 0.0, 60)]
    carrying = counterexamples(long, found, truncation, Random(0))[2 * len(long) :]
    carrying += carriers(long, Planted("word", "cf", 1), truncation, Random(0))
    assert all(cf in encoded["input_ids"] for encoded in encode(tokenizer, carrying, 32))
    assert len({row.text.split().index("cf") for row in carrying}) > 5
    short = rows(20)
    assert truncation.places(short) == [len(row.text.split()) for row in short]
