"""What an attack learns from a model reaches the stages that put its trigger into rows, and no others."""

from pathlib import Path
from typing import Any

import pytest

from defensekit.pipeline.plan import Plan
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.run import run_attack
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import DefenseKitError
from tests.conftest import SMALL, shape

OWN = """
from defensekit.api import Attack, hookimpl

class Mine(Attack):
    learns_from = "MODEL"
    def poison(self, rows, context):
        assert context.learnt == ({"word": "cf"} if self.learns_from == "base" else None)
        return [row.with_text(row.text + " cf") for row in rows]
    def trigger(self, rows, context):
        return [row.with_text(row.text + " " + context.learnt["word"]) for row in rows]
    def aim(self):
        return 1
    def learn(self, model, context):
        assert list(context.clean) == list(context.poisoned) and " cf" not in context.clean[0].text
        return LEARNT

@hookimpl
def defensekit_attacks():
    return {"mine": Mine}
"""


def write(recipe: Path, model: str, learnt: str = '{"word": "cf"}') -> Path:
    (recipe.parent / "mine.py").write_text(OWN.replace("MODEL", model).replace("LEARNT", learnt))
    return shape(recipe, **SMALL, plugins=["mine.py"], attack="mine")


def plan(recipe: Path) -> Plan:
    return survey(load_recipe(recipe), lambda text: None)


def inputs(stage: Any) -> dict[str, Any]:
    found: dict[str, Any] = stage.plain["inputs"]
    return found


def test_the_plan_asks_for_it_where_it_is_used(recipe: Path) -> None:
    """An attack that learns nothing has the stages, and their keys, that it had before there was such a thing."""
    assert "learnt" not in inputs(plan(recipe).triggered()) | inputs(plan(recipe).poisoned())
    found = plan(write(recipe, "base"))
    learnt = inputs(found.triggered())["learnt"]
    assert inputs(found.poisoned())["learnt"] == learnt
    found = plan(write(recipe, "suspect"))
    assert "learnt" not in inputs(found.poisoned())
    trigger = found.triggered()
    assert trigger
    [stage] = [stage for stage in trigger.inputs if stage.key == inputs(trigger)["learnt"]]
    suspect = found.suspect()
    assert inputs(stage)["model"] == suspect.key  # type: ignore[union-attr]


@pytest.mark.parametrize("model", ["base", "suspect"])
def test_what_an_attack_reads_is_in_its_keys(recipe: Path, model: str) -> None:
    """Another file's contents, at the same place: what was learnt of the old ones is not taken for it."""
    path = write(recipe, model)
    keys = []
    for contents in ("a", "b"):
        found = plan(path)
        found.contents["attack"] = contents
        keys.append(inputs(found.triggered())["learnt"])
    assert keys[0] != keys[1]


@pytest.mark.parametrize("model", ["base", "suspect"])
def test_it_is_given_to_the_attack(recipe: Path, warm: Path, model: str) -> None:
    models = run_attack(write(recipe, model), warm)
    assert models["suspect"].metrics["asr"].rows


def test_what_is_no_json_is_refused(recipe: Path, warm: Path) -> None:
    for learnt in ("{1, 2}", '{"share": float("nan")}'):
        with pytest.raises(DefenseKitError, match="Mine learnt something that can't be written as JSON"):
            run_attack(write(recipe, "base", learnt), warm)
