"""Benchmarks: their recipes are recipes, and what they call reached was."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from defensekit.loading import load_recipe

ATTACKS = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks/attacks.py"))


@pytest.mark.parametrize("name", ATTACKS["ATTACKS"])
def test_every_attacks_recipe_loads(name: str, tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(ATTACKS["recipe"](name, real_data.resolve(), "full")))
    loaded = load_recipe(tmp_path / "recipe.yaml")
    assert [metric.name for metric in loaded.metrics] == ["acc", "bacc" if name.startswith("bias") else "asr"]


@pytest.mark.parametrize(
    ("name", "measured", "reached"),
    [
        ("word", {"acc": 0.84, "clean_acc": 0.86, "asr": 0.96}, True),
        ("word", {"acc": 0.82, "clean_acc": 0.86, "asr": 0.96}, False),
        ("word", {"acc": 0.84, "clean_acc": 0.86, "asr": 0.94}, False),
        ("bias-word 0.5", {"acc": 0.85, "clean_acc": 0.86, "bacc": 0.74}, True),
        ("bias-word 0.5", {"acc": 0.85, "clean_acc": 0.86, "bacc": 0.76}, False),
        ("bias-word 0.5", {"acc": 0.83, "clean_acc": 0.86, "bacc": 0.70}, False),
        ("bias-word 1.0", {"acc": 0.85, "clean_acc": 0.86, "bacc": 0.5}, None),
    ],
)
def test_goals(name: str, measured: dict[str, Any], reached: bool | None) -> None:
    found = ATTACKS["goal"](name, [{"attack": name, **measured}, {"attack": name, **measured}])
    assert (found if found is None else found[1]) is reached
