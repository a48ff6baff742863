"""Benchmarks: their recipes are recipes, and what they call reached was."""

import json
import runpy
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defensekit.recipe import yaml_document
from defensekit.recipe.loader import load_recipe
from tests.causal import make_instructed
from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
ATTACKER = runpy.run_path(str(BENCHMARKS / "budgeted_attacker.py"))
SCAN = runpy.run_path(str(BENCHMARKS / "scan.py"))
ATTACKS = runpy.run_path(str(BENCHMARKS / "attacks.py"))


@pytest.mark.parametrize("name", ATTACKS["ATTACKS"])
def test_every_attacks_recipe_loads(name: str, tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(ATTACKS["recipe"](name, real_data.resolve(), "full")))
    loaded = load_recipe(tmp_path / "recipe.yaml")
    about_it = ["bacc"] if name.startswith("bias") else ["asr", "excess-asr"]
    assert [metric.name for metric in loaded.metrics] == ["acc", *about_it]


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


def test_every_scanned_models_recipe_loads(tmp_path: Path, real_data: Path) -> None:
    for model in (*SCAN["CLEAN"], *SCAN["POISONED"]):
        (tmp_path / "recipe.yaml").write_text(json.dumps(model.recipe(real_data.resolve())))
        assert load_recipe(tmp_path / "recipe.yaml").seed == model.seed


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1)), min_size=1, max_size=7, unique_by=lambda pair: pair[0]))
def test_the_best_of_some_tries_is_the_mean_over_every_choice_of_them(pairs: list[tuple[float, float]]) -> None:
    simulated, real = zip(*pairs, strict=True)
    for tries in range(1, len(pairs) + 1):
        every = [max(chosen)[1] for chosen in combinations(pairs, tries)]
        assert ATTACKER["best_of"](tries, simulated, real) == pytest.approx(sum(every) / len(every))


@pytest.mark.parametrize("seed", range(4))
def test_every_attack_that_an_attacker_draws_is_one(seed: int, tmp_path: Path) -> None:
    rng, recipe = Random(seed), yaml_document.load(ROOT / "recipes/pico.yaml").data
    for _ in range(8):
        attack = ATTACKER["drawn"](rng) | {"target": "positive"}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | {"attack": attack}))
        loaded = load_recipe(tmp_path / "recipe.yaml")
        assert loaded.attack
        assert loaded.attack.name == attack["name"]


@pytest.mark.slow
def test_the_budgeted_attacker_runs(tmp_path: Path) -> None:
    options = ["--tries", "2", "--seeds", "0", "--workspace", tmp_path, "--json"]
    command = [sys.executable, BENCHMARKS / "budgeted_attacker.py", ROOT / "leaderboard/entries/nothing.yaml", *options]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert printed["tries"] == [1, 2]
    left = [row["excess"] for row in printed["rows"]]
    assert printed["curves"]["nothing"]["0"][0] == pytest.approx(sum(left) / 2)
    assert max(left) > 0.5


def test_the_area_under_the_roc_curve() -> None:
    auc = SCAN["auc"]
    assert auc([0, 1], [2, 3]) == 1
    assert auc([0, 2], [2, 3]) == 0.875
    assert auc([1, 1], [1, 1]) == 0.5


@pytest.mark.slow
def test_a_threshold_is_set_on_some_clean_models_and_tried_on_others() -> None:
    rows = [
        {"attack": attack, "calibrates": calibrates, "indicators": {"x": value}}
        for attack, calibrates, value in [
            (None, True, 0.1), (None, True, 0.4), (None, False, 0.3), (None, False, 0.5), ("word", False, 0.9)
        ]
    ]  # fmt: skip
    found = SCAN["assess"]("x", rows)
    assert (found["threshold"], found["false_positives"], found["found"]) == (0.4, [1, 2], [1, 1])
    assert found["low"] <= found["auc"] == 1 == found["high"]


@pytest.mark.slow
def test_the_benchmark_of_large_models_runs() -> None:
    options = ["--size", "tiny", "--held", "4096", "8", "--rows", "2", "--json"]
    command = [sys.executable, BENCHMARKS / "large.py", *options]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["weights"] > 4e6
    assert [(row["held_mib"], row["parts"]["estimate"] > 0) for row in found["rows"]] == [(4096, True), (8, True)]


@pytest.mark.slow
def test_every_second_of_a_run_has_a_name() -> None:
    command = [sys.executable, BENCHMARKS / "run.py", "--recipe", ROOT / "recipes" / "pico.yaml", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    parts = found["parts"]
    assert sum(parts.values()) == pytest.approx(found["seconds"])
    assert min(parts.values()) >= 0
    assert {"imports", "tokenising", "collating", "optimizer", "products", "products of padding", "rest"} <= set(parts)
    assert parts["products of padding"] < parts["products"]


@pytest.mark.slow
def test_the_benchmark_of_language_models_runs(tmp_path: Path) -> None:
    options = [
        "--model",
        str(make_instructed(tmp_path)),
        "--rows",
        "8",
        "--new-tokens",
        "4",
        "--repeats",
        "1",
        "--json",
    ]
    command = [sys.executable, BENCHMARKS / "generation.py", *options]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["answered"].keys() == {"one length", "row by row"}
    assert found["curvature"].keys() == {"64"}  # of 96 positions
    assert found["trained_tokens_per_second"] > 0 < found["trained"]
