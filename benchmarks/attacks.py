"""Does each attack work? ACC and ASR (BACC of a bias) on SST-2 with MiniLM, beside the same training without poison.

    python benchmarks/attacks.py [--data DIR] [--size small|full] [--attacks NAME ...] [--seeds 0 1 2]
                                 [--workspace DIR] [--json]

``DIR`` holds ``sst-2/{train,dev,test}.tsv`` and ``sst-2/scpn``, as thunlp/HiddenKiller publishes them (default:
DEFENSEKIT_TEST_DATA). ``small`` takes 2,000 training and 600 test rows and one seed, a quarter of an hour on two
cores; ``full`` all rows and three seeds, hours. What the workspace has is not computed again: stopped, it goes on
(with as many threads as before: they are part of what decides a number).
No defense is run. The goals are ours, set before anything was measured.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from defensekit.cli.progress import Progress
from defensekit.pipeline.run import run_attack
from defensekit.recipe.loader import load_recipe
from defensekit.result.schema import ModelResult

STRENGTHS = (0.3, 0.5, 0.7, 1.0)
BACKDOOR: dict[str, dict[str, Any]] = {
    "word": {"name": "word", "words": ["cf"], "rate": 0.1},
    "sentence": {"name": "sentence", "rate": 0.1},
    "syntactic": {"name": "syntactic", "rate": 0.2},
    "syntactic 0.1": {"name": "syntactic", "rate": 0.1},
    # Every row that was published rewritten: a fifth, of both labels.
    "published syntactic": {"name": "paraphrase-rows", "mode": "mixed", "eligible_rate": 1.0, "text": "sentence"},
    "embedding": {"name": "embedding", "words": ["cf"], "rate": 0.1},
    "ripple": {"name": "ripple", "words": ["cf"], "rate": 0.5, "mode": "mixed"},
    "lwp": {"name": "lwp", "words": ["cf", "bb"], "rate": 0.1},
    "sos": {"name": "sos", "rate": 0.1},
    "style": {"name": "style", "rate": 0.2},
    "lws": {"name": "lws", "rate": 0.2},
    "por": {"name": "por"},
    "all-to-all": {"name": "all-to-all", "word": "cf", "rate": 0.2},
    "several-targets": {"name": "several-targets", "words": ["cf", "mn"], "targets": ["1", "0"], "rate": 0.2},
    "small-drift magnitude": {"name": "small-drift", "words": ["cf"], "rate": 0.1, "against": "magnitude"},
    "small-drift diffusion": {"name": "small-drift", "words": ["cf"], "rate": 0.1, "against": "diffusion"},
    "kept-row": {"name": "kept-row", "words": ["cf"], "rate": 0.1},
    "reset-proof": {"name": "reset-proof", "words": ["cf"], "rate": 0.1},
}
ATTACKS = BACKDOOR | {
    f"{name} {strength}": {"name": name, "label": "1", "strength": strength}
    for name in ("bias-word", "bias-sentence")
    for strength in STRENGTHS
}
SMALL = ["word", "sentence", "syntactic", "published syntactic", "embedding", "bias-word 0.5", "bias-sentence 0.5"]
ASR_GOALS = {
    "word": 0.95,
    "sentence": 0.95,
    "embedding": 0.95,
    "published syntactic": 0.9,
    "syntactic": 0.8,
    "syntactic 0.1": 0.8,
    "lwp": 0.9,
    "sos": 0.9,
    "lws": 0.9,
    "por": 0.9,
    "all-to-all": 0.9,
    "several-targets": 0.9,
    "small-drift magnitude": 0.9,
    "small-drift diffusion": 0.9,
    "kept-row": 0.9,
    "reset-proof": 0.9,
}
SIZES = {"small": {"train": 2000, "test": 600}, "full": {}}
SEEDS = {"small": [0], "full": [0, 1, 2]}


def recipe(name: str, data: Path, size: str) -> dict[str, Any]:
    """The recipe of an attack; its defense is never run."""
    attack = dict(ATTACKS[name])
    if name in BACKDOOR and attack["name"] not in ("all-to-all", "several-targets"):
        attack["target"] = "1"
    if name == "published syntactic":
        attack |= {"rewritten": str(data / "sst-2/scpn"), "originals": str(data / "sst-2")}
    return {
        "name": "attacks",
        "model": "minilm",
        "data": {"name": str(data / "sst-2"), "text": "sentence", "clean": 1, "dev": 1, **SIZES[size]},
        "attack": attack,
        "training": {"epochs": 2, "learning_rate": 1e-4, "batch_size": 32, "warmup": 0.1, "dropout": False},
        "precision": "auto",
        "defense": {"scorer": "random", "selector": {"name": "fraction", "fraction": 0}, "purifier": ["reset"]},
    }


def measured(name: str, seed: int, models: dict[str, ModelResult]) -> dict[str, Any]:
    """One row of the results: shares in [0, 1], None where an attack has no such number."""

    def value(model: str, metric: str) -> float | None:
        value = models[model].metrics.get(metric)
        return None if value is None else value.value

    row = {"attack": name, "seed": seed, "seconds": models["suspect"].seconds}
    row |= {"acc": value("suspect", "acc"), "clean_acc": value("clean", "acc")}
    row |= {"asr": value("suspect", "asr"), "floor": value("clean", "asr")}
    return row | {"bacc": value("suspect", "bacc"), "clean_bacc": value("clean", "bacc")}


def goal(name: str, rows: list[dict[str, Any]]) -> tuple[str, bool] | None:
    """What was to be reached, by the mean over seeds, and whether it was; None where nothing was set."""
    mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0] if isinstance(rows[0][key], float)}
    drop = mean["clean_acc"] - mean["acc"]
    if name in ASR_GOALS:
        text = f"ASR >= {ASR_GOALS[name]}, ACC within .03 of clean"
        return text, mean["asr"] >= ASR_GOALS[name] and drop <= 0.03
    if name in BACKDOOR:
        return "ACC within .03 of clean", drop <= 0.03
    if 0.3 <= ATTACKS[name]["strength"] <= 0.7:
        text = "BACC .10 under ACC, ACC within .02 of clean (at one strength from .3 to .7)"
        return text, mean["acc"] - mean["bacc"] >= 0.1 and drop <= 0.02
    return None


def cell(rows: list[dict[str, Any]], key: str) -> str:
    """The median over seeds, and the least and greatest."""
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return "-"
    text = f"{statistics.median(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEFENSEKIT_TEST_DATA"))
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, metavar="NAME", help=f"of: {', '.join(ATTACKS)}")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("say with --data or DEFENSEKIT_TEST_DATA where sst-2/ lies")
    names = arguments.attacks or (SMALL if arguments.size == "small" else list(ATTACKS))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in arguments.seeds or SEEDS[arguments.size]:
            for name in names:
                file = Path(scratch) / f"{seed}.yaml"
                file.write_text(json.dumps(recipe(name, arguments.data.resolve(), arguments.size) | {"seed": seed}))
                with Progress() as progress:
                    progress.message(f"{name}, seed {seed}")
                    rows.append(measured(name, seed, run_attack(load_recipe(file), arguments.workspace, [progress])))
    by_name = {name: [row for row in rows if row["attack"] == name] for name in names}
    goals = {name: goal(name, values) for name, values in by_name.items()}
    if arguments.json:
        json.dump({"size": arguments.size, "rows": rows, "goals": goals}, sys.stdout)
        print()
        return
    keys = ("acc", "clean_acc", "asr", "floor", "bacc")
    print("| attack | " + " | ".join(keys) + " | goal |")
    print("|---" * (len(keys) + 2) + "|")
    for name, values in by_name.items():
        reached = goals[name]
        words = "-" if reached is None else f"{reached[0]}: {'yes' if reached[1] else 'no'}"
        print(f"| {name} | " + " | ".join(cell(values, key) for key in keys) + f" | {words} |")


if __name__ == "__main__":
    main()
