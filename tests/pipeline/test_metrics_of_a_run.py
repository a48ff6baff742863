"""Which metrics a run has, and what a result says of its components."""

from pathlib import Path

import pytest

import defensekit
from defensekit.pipeline.preflight import survey
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.conftest import SMALL, make_sentences, shape, write_table

BROKEN = """
from defensekit.api import hookimpl

@hookimpl
def defensekit_metrics():
    return {"needs-more": "a_module_that_is_not_there:Metric"}
"""
ORACLE = """
from typing import ClassVar

from defensekit.api import Choice, Rule, hookimpl

class Peeking(Rule):
    oracle: ClassVar[bool] = True

    def propose(self, seen):
        return next((value for value in (0.0, *self.values) if value not in {trial.value for trial in seen}), None)

    def choose(self, seen, suspect):
        return Choice(seen[-1].value, "it looked")

@hookimpl
def defensekit_rules():
    return {"peeking": Peeking}
"""


def test_a_metric_that_cannot_be_loaded_breaks_the_recipe_that_names_it_alone(recipe: Path) -> None:
    (recipe.parent / "broken.py").write_text(BROKEN)
    shape(recipe, plugins=["broken.py"], metrics=["acc"])
    assert [named.name for named in load_recipe(recipe).metrics] == ["acc"]
    shape(recipe, metrics=None)
    assert [named.name for named in load_recipe(recipe).metrics] == ["acc", "asr", "excess-asr"]
    shape(recipe, metrics=["needs-more"])
    with pytest.raises(UsageError, match=r"pico.yaml:\d+: metrics.0.*needs-more.*can't be loaded"):
        load_recipe(recipe)


MINE = """
from defensekit.api import Measured, Metric, hookimpl

class Mine(Metric):
    ON
    def measure(self, predictions):
        return VALUE

@hookimpl
def defensekit_metrics():
    return {"mine": Mine}
"""


@pytest.mark.parametrize(
    ("says", "wanted"),
    [
        ("pass", "what it is measured `on`, one of plain, triggered, both, got None"),
        ('on = "clean"', "what it is measured `on`, one of plain, triggered, both, got 'clean'"),
        ('on, better = "plain", "up"', "which way is `better`, one of higher, lower, None, got 'up'"),
        ('on, about = "plain", "attacks"', "which attacks it is `about`, one of backdoor, bias, None, got 'attacks'"),
    ],
)
def test_a_metric_says_what_it_is_about(recipe: Path, says: str, wanted: str) -> None:
    (recipe.parent / "mine.py").write_text(MINE.replace("ON", says).replace("VALUE", "0.5"))
    with pytest.raises(UsageError, match=rf"metrics.0: 'mine' of plugin 'mine.py'.* has to say {wanted}"):
        load_recipe(shape(recipe, plugins=["mine.py"], metrics=["mine"]))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0.5", "gave float, expected a Measured"),
        (
            "Measured(value=0.5, low=float('nan'), high=1, rows=1)",
            r"gave the interval \[nan, 1\], expected ends in order",
        ),
    ],
)
def test_a_metric_that_gives_something_else_is_named(recipe: Path, warm: Path, value: str, says: str) -> None:
    (recipe.parent / "mine.py").write_text(MINE.replace("ON", 'on = "plain"').replace("VALUE", value))
    shape(recipe, **SMALL, plugins=["mine.py"], metrics=["acc", "mine"], defense__choose=None)
    with pytest.raises(DefenseKitError, match=f"the metric Mine {says}"):
        defensekit.run(recipe, warm)


def test_a_measurement_retrains_nothing(recipe: Path, suspect: Path) -> None:
    """Neither a metric's parameter nor the target of known triggered rows is in a model's key."""

    def key(*settings: str) -> str:
        plan = survey(load_recipe(recipe, settings), lambda text: None)
        model = plan.purified("purified", plan.recipe.defense)
        return model.key

    assert key("metrics=[{name: ece, bins: 5}]") == key("metrics=[{name: ece, bins: 7}, acc]") == key()
    rows = [(text, str(int(label == "positive"))) for text, label in make_sentences(200)]
    write_table(recipe.parent / "rows.csv", rows)
    given = {"path": str(recipe.parent / "rows.csv"), "target": 1}
    shape(recipe, attack=None, training=None, data__train=None, suspect=str(suspect), triggered=given)
    assert key("triggered.target=0") == key()


def test_a_metric_of_triggered_rows_without_any_leaves_a_result_without_numbers(
    recipe: Path, tmp_path: Path, suspect: Path
) -> None:
    rows = [(text, str(int(label == "positive"))) for text, label in make_sentences(200)]
    write_table(recipe.parent / "rows.csv", rows)
    changes = {"attack": None, "training": None, "data__train": None, "suspect": str(suspect)}
    shape(recipe, **changes, metrics=["asr"], defense__choose=None, defense__purifier=["reset"])
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.models["purified"].metrics == {}


def test_a_result_names_the_oracles(recipe: Path, warm: Path) -> None:
    (recipe.parent / "peeking.py").write_text(ORACLE)
    shape(recipe, **SMALL, defense__purifier=["reset"], defense__compare={})
    shape(recipe, plugins=["peeking.py"], defense__choose={"rule": "peeking", "values": [0.5]})
    assert defensekit.run(recipe, warm).oracle == ["peeking"]
