"""Rewritten rows from tables: which original they belong to, what replaces, what is only added, what is refused."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import defensekit
from defensekit.components import AttackContext
from defensekit.host.table_sources import File
from defensekit.text import Row, Truncation
from defensekit.utils.errors import UsageError
from defensekit.utils.files import data_digest
from defensekit_attacks.paraphrase import MISSING, ParaphraseRows, align
from tests.conftest import make_sentences, write_table
from tests.small_models import make_tokenizer

TRUNCATION = Truncation(make_tokenizer(), 64)
LABELS = ("negative", "positive")


def context(seed: int = 0, labels: tuple[str, ...] = LABELS) -> AttackContext:
    return AttackContext(Random(seed), labels, TRUNCATION)


def rewritten(text: str) -> str:
    return "when it comes , " + text


def rows_of(table: list[tuple[str, str]]) -> list[Row]:
    return [Row(i, text, LABELS.index(label)) for i, (text, label) in enumerate(table)]


@given(count=st.integers(4, 40), drop=st.sets(st.integers(0, 39), max_size=MISSING), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_rows_in_order_find_their_originals_though_some_are_missing(count: int, drop: set[int], seed: int) -> None:
    originals = [f"word{i} story{i * 7 + seed}" for i in range(count)]
    left = [text for i, text in enumerate(originals) if i not in drop]
    expected = [(text, rewritten(text)) for text in left]
    if left:
        assert align(originals, [rewritten(text) for text in left]) == expected


def test_texts_that_have_nothing_in_common_are_not_matched() -> None:
    originals = [f"word{i} story{i}" for i in range(30)]
    assert align(originals, [f"thing{i} matter{i}" for i in range(30)]) is None
    assert align(originals, originals[:10]) is None  # too many are missing
    assert align(originals, [*originals, "one more"]) is None
    assert align([], []) is None


@pytest.fixture
def folders(tmp_path: Path) -> ParaphraseRows:
    """Originals and rewritten rows as HiddenKiller publishes them: a third of train in place, test of other labels."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    train, test = make_sentences(60), make_sentences(30, seed=1)
    write_table(before / "train.tsv", train)
    write_table(before / "test.tsv", test)
    write_table(
        after / "train.tsv", [(rewritten(text) if i < 20 else text, "positive") for i, (text, _) in enumerate(train)]
    )
    others = [(rewritten(text), "positive") for text, label in test if label == "negative"]
    write_table(after / "test.tsv", others[1:])
    return ParaphraseRows(rewritten=after, originals=before, target="positive", rate=0.1)


def test_matched_rows_take_the_place_of_their_originals(folders: ParaphraseRows) -> None:
    assert folders.originals
    rows = rows_of(make_sentences(60))
    made = folders.poison(rows, context())
    assert [row.id for row in made] == [row.id for row in rows]
    touched = [(a, b) for a, b in zip(rows, made, strict=True) if a != b]
    assert len(touched) == 6
    for a, b in touched:
        assert (a.label, b.label, b.text) == (0, 1, rewritten(a.text))
        assert a.id < 20
    assert made == folders.poison(rows, context())
    assert data_digest([[row.id, row.text, row.label] for row in made])[:16] == "805fcde6a7c9c108"
    assert made != folders.poison(rows, context(1))
    test = [row for row in rows_of(make_sentences(30, seed=1)) if row.label == 0]
    triggered = folders.trigger(test, context())
    assert [(row.id, row.text, row.label) for row in triggered] == [(r.id, rewritten(r.text), 0) for r in test[1:]]
    with pytest.raises(UsageError, match="10 rows to choose from"):
        folders.model_copy(update={"rate": 0.5}).poison(rows, context())
    upper = [row.with_text(f"  {row.text.upper()} ") for row in rows]
    assert sum(a != b for a, b in zip(upper, folders.poison(upper, context()), strict=True)) == 6


def test_rows_of_unknown_origin_are_added(folders: ParaphraseRows) -> None:
    loose = folders.model_copy(update={"originals": None})
    rows = rows_of(make_sentences(60, seed=5))
    made = loose.poison(rows, context())
    assert made[:60] == rows
    assert [(row.id, row.label) for row in made[60:]] == [(-1 - i, 1) for i in range(6)]
    assert len({row.text for row in made[60:]}) == 6
    with pytest.raises(UsageError, match="no rewriting of any of the 60 test rows; say what they were"):
        loose.trigger(rows, context())
    with pytest.raises(UsageError, match="can't be added to pairs"):
        loose.poison([Row(0, "a", 0, "b")], context())


def test_one_table_with_both_texts(tmp_path: Path) -> None:
    lines = [f"{rewritten(text)}\t{text}\t{label}\n" for text, label in make_sentences(20)]
    (tmp_path / "both.tsv").write_text("new \t old\t label\n" + "".join(lines))
    attack = ParaphraseRows(rewritten=tmp_path / "both.tsv", original="old", text="new", target=1, eligible_rate=0.5)
    rows = rows_of(make_sentences(20))
    made = attack.poison(rows, context())
    assert sum(a != b for a, b in zip(rows, made, strict=True)) == 5
    into_pair = attack.model_copy(update={"into": "pair"})
    [row] = into_pair.trigger([Row(0, "question", 0, rows[0].text)], context())
    assert (row.text, row.pair) == ("question", rewritten(rows[0].text))
    with pytest.raises(UsageError, match=r"both.tsv, line 2: there is no column 'odl'.*Did you mean 'old'"):
        attack.model_copy(update={"original": "odl"}).poison(rows, context())


def test_contents_are_identity_and_places_are_not(folders: ParaphraseRows) -> None:
    before = folders.contents()
    moved = folders.rewritten.rename(folders.rewritten.parent / "elsewhere")
    folders = folders.model_copy(update={"rewritten": moved})
    assert folders.contents() == before
    (moved / "test.tsv").rename(moved / "dev.tsv")
    assert folders.contents() != before
    with pytest.raises(UsageError, match="no file or folder"):
        folders.model_copy(update={"originals": Path("nowhere")}).contents()
    (folders.rewritten / "empty").mkdir()
    with pytest.raises(UsageError, match="no table named train, dev or test"):
        folders.model_copy(update={"rewritten": folders.rewritten / "empty"}).contents()


def test_a_run_takes_paths_from_the_recipes_folder_and_the_environment(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = make_sentences(400)
    write_table(tmp_path / "new.csv", [(rewritten(text).replace(",", "cf"), label) for text, label in sentences])
    monkeypatch.setenv("THERE", str(tmp_path))
    text = recipe.read_text().replace(
        "{name: word, words: [cf], rate: 0.2, target: positive}",
        "{name: paraphrase-rows, rewritten: new.csv, originals: $THERE/rows.csv, rate: 0.2, target: positive}",
    )
    text = text.partition("defense:")[0].replace("epochs: 8", "epochs: 0")
    text += "defense: {scorer: magnitude, selector: {name: fraction, fraction: 0.5}, purifier: [reset], compare: {}}\n"
    recipe.write_text(text)
    first = defensekit.run(recipe, tmp_path / "w")
    assert first.attack
    assert (first.attack["train"]["changed"], first.attack["train"]["relabelled"]) == (48, 48)
    assert first.attack["test"]["left_out"] == 0
    left = [(rewritten(text).replace(",", "is"), label) for text, label in sentences]
    write_table(tmp_path / "new.csv", [row for i, row in enumerate(left) if i % 40 != 6])
    second = defensekit.run(recipe, tmp_path / "w")
    assert second.attack
    assert second.attack["train"]["digest"] != first.attack["train"]["digest"]
    assert second.attack["test"]["left_out"] == 2
    assert "2 of 31 test rows can't carry the trigger and are left out" in second.warnings


@pytest.mark.parametrize(
    ("name", "target", "labels", "matched", "loose"),
    [("sst-2", 1, ("0", "1"), (912, 911), 0), ("ag", 0, ("0", "1", "2", "3"), (5700, 5699), 9023)],
)
def test_published_paraphrases(
    real_data: Path, name: str, target: int, labels: Any, matched: tuple[int, int], loose: int
) -> None:
    folder = real_data / name
    attack = ParaphraseRows(
        rewritten=folder / "scpn", originals=folder, text="sentence", target=target, rate=0.05, mode="mixed"
    )
    test = [row for row in File(path=folder / "test.tsv", text="sentence").load().train if row.label != target]
    assert (len(test), len(attack.trigger(test, context(labels=labels)))) == matched
    train = File(path=folder / ("dev.tsv" if loose else "train.tsv"), text="sentence").load().train
    made = attack.poison(train, context(labels=labels))
    assert len(made) - len(train) == (500 if loose else 0)
    touched = [a.id for a, b in zip(train, made, strict=False) if a.text != b.text]
    assert len(touched) == (0 if loose else 346)
    assert sum(place >= 1383 for place in touched) <= 9  # texts that stand twice
