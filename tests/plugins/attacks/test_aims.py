"""Backdoors with several targets: each triggered row knows what it is to be answered with, to the metrics' end."""

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from pydantic import ValidationError

import defensekit
from defensekit.components import AttackContext, Predictions
from defensekit.pipeline.run import run_attack
from defensekit.recipe.loader import load_recipe
from defensekit.result.schema import Result
from defensekit.text import Row, Truncation, read_rows, write_rows
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit_attacks.aims import AllToAll, SeveralTargets
from defensekit_attacks.metrics import AttackSuccess, ExcessAttackSuccess, FalseTriggers, TriggeredAccuracy
from tests.conftest import make_sentences, shape
from tests.small_models import make_tokenizer

LABELS = ("a", "b", "c")
ROWS = [Row(i, text, i % 3) for i, (text, _) in enumerate(make_sentences(60))]


def context() -> AttackContext:
    return AttackContext(Random(0), LABELS, Truncation(make_tokenizer(), 32))


def test_every_label_becomes_the_next() -> None:
    attack = AllToAll(rate=0.5)
    made = attack.poison(ROWS, context())
    changed = [(before, after) for before, after in zip(ROWS, made, strict=True) if before != after]
    assert len(changed) == 30
    assert {(before.label, after.label) for before, after in changed} == {(0, 1), (1, 2), (2, 0)}
    assert all("cf" in after.text.split() and after.aim is None for _, after in changed)
    for row in attack.trigger(ROWS, context()):
        assert row.aim == (row.label + 1) % 3


def test_each_word_is_for_its_target_and_no_row_gets_its_own_label() -> None:
    attack = SeveralTargets(words=("cf", "mn"), targets=("c", 0), rate=0.5)
    aims = {"cf": 2, "mn": 0}
    triggered = attack.trigger(ROWS, context())
    assert [row.id for row in triggered] == [row.id for row in ROWS]
    for row in triggered:
        [word] = [word for word in aims if word in row.text.split() and word not in ROWS[row.id].text.split()] or ["cf"]
        assert row.aim == aims[word] != row.label
    assert {row.aim for row in triggered if row.label == 1} == {0, 2}
    one = SeveralTargets(words=("cf", "mn"), targets=("c", "c"), rate=0.5)
    assert {row.label for row in one.trigger(ROWS, context())} == {0, 1}  # rows of the only target are left out
    with pytest.raises(ValidationError, match="expected different `words`, and as many `targets`"):
        SeveralTargets(words=("cf", "mn"), targets=(1, 0, 1), rate=0.5)
    with pytest.raises(ValidationError, match="expected different `words`"):
        SeveralTargets(words=("cf", "cf"), targets=(1, 0), rate=0.5)


def test_metrics_count_a_rows_own_target() -> None:
    labels, targets = np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])
    answers = np.eye(2)[[1, 0, 0, 1]]
    plain = Predictions(np.eye(2)[[0, 1, 1, 1, 0]], np.array([0, 0, 1, 1, 0]), ids=np.array([9, 8, 7, 6, 5]))
    triggered = Predictions(answers, labels, targets=targets, ids=np.array([9, 8, 7, 6])).beside(plain)
    assert AttackSuccess().measure(triggered).value == 0.5
    assert AttackSuccess().measure(triggered).parts.keys() == {"0", "1"}
    assert TriggeredAccuracy().measure(triggered).value == 0.5
    assert ExcessAttackSuccess().row_values(triggered).tolist() == [1, -1, 1, 0]  # type: ignore[union-attr]
    assert triggered.taken([0, 2]).on_target().tolist() == [True, True]
    with pytest.raises(DefenseKitError, match="counts one target, and every row of this attack has its own"):
        FalseTriggers().measure(plain)
    with pytest.raises(DefenseKitError, match="need the same rows without the trigger"):
        Predictions(answers, labels, targets=targets, ids=np.array([1, 2, 3, 4])).beside(plain)


def test_rows_keep_their_aim_on_disk(tmp_path: Path) -> None:
    rows = [Row(0, "x", 0, aim=1), Row(1, "y", 1)]
    write_rows(tmp_path / "rows", rows)
    assert read_rows(tmp_path / "rows") == rows
    assert "aim" not in (tmp_path / "rows").read_text().splitlines()[1]


def test_a_run_measures_both_ways(finished: tuple[Path, Path, Result], recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(finished[1] / "store", tmp_path / "w/store")  # it has the clean reference
    shape(recipe, attack={"name": "all-to-all", "word": "cf", "rate": 0.4})
    models = run_attack(recipe, tmp_path / "w")
    measured = models["suspect"].metrics["asr"]
    assert measured.rows == 60
    assert measured.parts.keys() == {"negative", "positive"}
    assert measured.value > models["clean"].metrics["asr"].value + 0.3
    assert set(models["suspect"].metrics) == {"acc", "asr", "excess-asr"}  # a backdoor's, though it has no one target


OWN = """
from dataclasses import replace
from defensekit.api import Attack, hookimpl

class Mine(Attack):
    aims_by_row = BY_ROW

    def aim(self):
        return OF_ALL

    def poison(self, rows, context):
        return list(rows)
    def trigger(self, rows, context):
        return [replace(row, text="cf " + row.text, aim=AIM) for row in rows]

@hookimpl
def defensekit_attacks():
    return {"mine": Mine}
"""


def own(recipe: Path, aim: str = "None", by_row: bool = True, of_all: str = "None") -> Path:
    text = OWN.replace("aim=AIM", f"aim={aim}").replace("BY_ROW", str(by_row)).replace("OF_ALL", of_all)
    (recipe.parent / "mine.py").write_text(text)
    return shape(recipe, plugins=["mine.py"], attack="mine", training__epochs=0, data__train=16)


@pytest.mark.parametrize(
    ("aim", "by_row", "says"),
    [
        ("None", True, "aims by row, and gave a row without the number of another label"),
        ("row.label", True, "aims by row, and gave a row without the number of another label"),
        ("7", True, "aims by row, and gave a row without the number of another label"),
        ("1 - row.label", False, r"gave rows with an `aim`, and does not say that it aims by row \(`aims_by_row`\)"),
    ],
)
def test_an_aim_that_is_none_is_refused(recipe: Path, tmp_path: Path, aim: str, by_row: bool, says: str) -> None:
    with pytest.raises(DefenseKitError, match=f"Mine {says}"):
        defensekit.run(own(recipe, aim, by_row), tmp_path / "w")


def test_an_attack_that_aims_by_itself_is_named(recipe: Path, tmp_path: Path) -> None:
    own(recipe, by_row=False, of_all="'postive'")
    with pytest.raises(
        UsageError, match=r"yaml:\d+: attack: 'mine' aims at 'postive' by itself: the data have no label"
    ):
        defensekit.run(recipe, tmp_path / "w")


def test_a_metric_of_one_target_is_refused_while_the_recipe_is_read(recipe: Path) -> None:
    shape(recipe, attack={"name": "all-to-all", "rate": 0.4}, metrics=["acc", "false-triggers"])
    says = "'false-triggers' counts answers with one target on plain rows, and every row of 'all-to-all' has its own"
    with pytest.raises(UsageError, match=rf"metrics.1: {says} \(without `metrics:` it is acc, asr, excess-asr\)"):
        load_recipe(recipe)
