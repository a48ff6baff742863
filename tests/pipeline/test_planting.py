"""Triggers of the defender's own: planted into a copy, tried at every value, and seen by the rule."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

import defensekit
from defensekit.components import Predictions
from defensekit.defense.triggers.planting import EACH, PHRASE, Planted, carriers, draw, excess
from defensekit.pipeline.dry_run import preview
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.text import Row, Truncation
from defensekit.utils.errors import UsageError
from tests.conftest import shape
from tests.small_models import make_tokenizer

ROWS = [Row(i, f"the film is a superb story number{i}", i % 3) for i in range(12)]


def predictions(ids: list[int], answers: list[int]) -> Predictions:
    logits = np.eye(3, dtype=np.float32)[answers]
    return Predictions(logits, np.zeros(len(ids), dtype=np.int64), ids=np.array(ids))


def test_what_is_planted_is_drawn_from_the_seed_and_aims_at_one_label() -> None:
    drawn = draw(ROWS, 3, make_tokenizer(), Random(0))
    assert drawn == draw(ROWS, 3, make_tokenizer(), Random(0)) != draw(ROWS, 3, make_tokenizer(), Random(1))
    assert [trigger.family for trigger in drawn] == ["word"] * EACH + ["phrase"] * EACH
    text = " | ".join(row.text for row in ROWS)
    for trigger in drawn:
        assert (trigger.text in text) == (trigger.family == "phrase")
        assert len(trigger.text.split()) == (PHRASE if trigger.family == "phrase" else 1)
    assert len({trigger.label for trigger in drawn}) == 1
    assert {draw(ROWS, 3, make_tokenizer(), Random(seed))[0].label for seed in range(9)} == {0, 1, 2}


@pytest.mark.parametrize("rows", [[Row(0, "too short", 0), Row(1, "as well", 1)], [Row(0, "one label for all", 0)]])
def test_rows_that_give_no_phrase_are_refused(rows: list[Row]) -> None:
    with pytest.raises(UsageError, match="nothing can be planted"):
        draw(rows, 2, make_tokenizer(), Random(0))


def test_rows_of_other_labels_carry_a_trigger_under_their_own() -> None:
    carrying = carriers(ROWS, Planted("word", "cf", 1), Truncation(make_tokenizer(), 64), Random(0))
    assert [(row.id, row.label) for row in carrying] == [(row.id, row.label) for row in ROWS if row.label != 1]
    for row in carrying:
        words = row.text.split()
        words.remove("cf")
        assert " ".join(words) == ROWS[row.id].text


def test_excess_counts_answers_that_a_trigger_turns() -> None:
    triggers = [{"family": "word", "label": 1, "rows": 4}, {"family": "word", "label": 0, "rows": 2},
                {"family": "phrase", "label": 2, "rows": 1}]  # fmt: skip
    plain = predictions([5, 6, 7, 8], [1, 0, 2, 2])
    carrying = predictions([5, 6, 7, 8, 8, 7, 6], [1, 1, 1, 0, 0, 2, 0])
    # Of four rows two are turned to 1; of two, one to 0; and none to 2.
    assert excess(triggers, plain, carrying) == {"word": (2 / 4 + 1 / 2) / 2, "phrase": 0.0}


def test_a_run_plants_tries_and_chooses(recipe: Path, tmp_path: Path) -> None:
    rule = {"rule": "planted", "values": [1.0], "max_planted": 0.3}
    rule |= {"epochs": 20, "learning_rate": 5e-3, "batch_size": 16, "dropout": False}
    rows = {"data__train": 200, "data__clean": 60, "data__dev": 60, "training__epochs": 2}
    shape(recipe, **rows, defense__purifier=["reset"], defense__choose=rule, defense__compare={})
    planned = {stage.title for stage in preview(load_recipe(recipe), tmp_path / "w")}
    result = defensekit.run(recipe, tmp_path / "w")
    assert planned >= {stage.title for stage in result.stages if "planted" in stage.title} != set()
    left = {trial.value: trial.planted for trial in result.curve}
    assert set(left) == {0.0, 1.0}
    assert all(set(planted) == {"word", "phrase"} for planted in left.values())
    # They are in the copy, and a model of which everything is reset has nothing of them.
    assert result.chosen is not None
    assert left[0.0] == result.chosen.suspect_planted
    assert max(left[0.0].values()) > 0.5
    assert max(left[1.0].values()) < 0.3
    assert "planted triggers" in result.chosen.reason
    assert max(left[result.chosen.value].values()) <= 0.3
    assert result.verdict is not None
    assert result.verdict.removed
    assert "Triggers of one's own, planted into a copy, no longer work" in result.verdict.text
    # The suspect itself was not trained on anything of it.
    kept = {stage.title: stage for stage in result.stages}
    assert kept["planted triggers"].kind == "plant"
    again = defensekit.run(recipe, tmp_path / "w")
    assert all(stage.reused for stage in again.stages)
    for stage in result.stages:
        if stage.kind in ("train", "plant", "purify"):
            Store(tmp_path / "w/store").remove(stage.key)
    assert defensekit.run(recipe, tmp_path / "w").summary == result.summary
    there = {manifest["stage"]["kind"] for _, manifest, _ in Store(tmp_path / "w/store").entries()}
    assert not there & {"train", "plant"}, "it is repeated without training"


def test_words_with_a_mark_behind_them_are_in_the_rows_as_well() -> None:
    rows = [Row(i, "a superb, film. The-end (story) of it", i % 2) for i in range(4)]
    words = {one.text for seed in range(200) for one in draw(rows, 2, make_tokenizer(), Random(seed))[:EACH]}
    assert "bleak" in words
    assert not words & {"film", "story", "superb"}
