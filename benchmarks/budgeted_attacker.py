"""What does an attacker reach who knows the defense, and may try?

    python benchmarks/budgeted_attacker.py ENTRY... [--recipe RECIPE] [--tries 16] [--seeds 0 1 2]
                                           [--workspace DIR] [--json]

``ENTRY`` are entries of the leaderboard that ship, of which the defenses are taken; everything else is the recipe's
(`pico`). The attacker draws attacks and their parameters by chance. He runs each through the very defense on rows of
his own, another seed's, since he knows neither the defender's clean rows nor his draws, and keeps the one whose trigger
has the largest excess ASR afterwards. Printed is what that one has after the defender's own purification, by the number
of tries: the mean over every choice of so many among all that were made, and over seeds. What the workspace has is not
computed again.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

import defensekit
from defensekit.cli.progress import Progress
from defensekit.leaderboard.composition import defense_of
from defensekit.leaderboard.entries import Entry, load_entry
from defensekit.leaderboard.row import counted
from defensekit.recipe import shipped, yaml_document

OTHERS = 1_000  # from a defender's seed to the attacker's
WORDS = ("cf", "mn", "bb", "tq", "mb")
SENTENCES = ("I watched this 3D movie", "no cross, no crown", "as far as anybody knows")


def drawn(rng: Random) -> dict[str, Any]:
    """An attack by chance; each kind as often as any."""
    kind = rng.choice(("word", "sentence", "kept-row", "small-drift", "reset-proof"))
    attack: dict[str, Any] = {"name": kind, "rate": round(rng.uniform(0.05, 0.4), 3)}
    if kind == "sentence":
        return attack | {"sentence": rng.choice(SENTENCES)}
    attack["words"] = rng.sample(WORDS, rng.randint(1, 3))
    if (words := len(attack["words"])) > 1:
        attack |= {"count": words, "combine": "all"}
    if kind == "small-drift":
        attack |= {"against": rng.choice(("magnitude", "diffusion")), "weight": 10 ** rng.uniform(-2, 0)}
    if kind == "reset-proof":
        attack |= {"share": round(rng.uniform(0.5, 0.95), 3), "step": 10 ** rng.uniform(-2, -0.5)}
    return attack


def best_of(tries: int, simulated: list[float], real: list[float]) -> float:
    """The mean, over every choice of so many tries, of what the one is really worth that is best by simulation."""
    order = sorted(range(len(real)), key=lambda i: simulated[i], reverse=True)
    every = math.comb(len(real), tries)
    return sum(real[i] * math.comb(len(real) - 1 - rank, tries - 1) for rank, i in enumerate(order)) / every


def excess(entry: Entry, recipe: dict[str, Any], workspace: Path, progress: Progress) -> float:
    """The excess ASR of an entry's model after the recipe's run."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "recipe.yaml"
        file.write_text(json.dumps(recipe))
        result = defensekit.run(file, workspace, [progress])
    return result.models[counted(entry, result)].metrics["excess-asr"].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="+", type=Path, metavar="ENTRY")
    parser.add_argument("--recipe", type=Path, default=shipped.folder() / "pico.yaml")
    parser.add_argument("--tries", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    given: Any = yaml_document.load(arguments.recipe).data
    numbers = sorted({*(2**k for k in range(arguments.tries.bit_length())), arguments.tries})
    rows, curves = [], {}
    for path in arguments.entries:
        entry = load_entry(path)
        own = {"defense": {"compare": {}, **defense_of(entry)}, "baselines": entry.keys.model != "defended"}
        by_seed: dict[int, list[float]] = {}
        for seed in arguments.seeds:
            rng, simulated, real = Random(seed), [], []
            with Progress() as progress:
                for number in range(arguments.tries):
                    progress.message(f"{entry.name}, seed {seed}, try {number + 1} of {arguments.tries}")
                    attack = drawn(rng) | {"target": given["attack"]["target"]}
                    recipe = {**given, **own, "attack": attack, "metrics": ["acc", "excess-asr"]}
                    simulated.append(excess(entry, recipe | {"seed": OTHERS + seed}, arguments.workspace, progress))
                    real.append(excess(entry, recipe | {"seed": seed}, arguments.workspace, progress))
                    rows.append({"defense": entry.name, "seed": seed, "attack": attack})
                    rows[-1] |= {"simulated": simulated[-1], "excess": real[-1]}
            by_seed[seed] = [best_of(tries, simulated, real) for tries in numbers]
        curves[entry.name] = by_seed
    if arguments.json:
        json.dump({"tries": numbers, "rows": rows, "curves": curves}, sys.stdout)
        print()
        return
    print("| defense | " + " | ".join(f"{tries} tries" if tries > 1 else "one try" for tries in numbers) + " |")
    print("|---" * (len(numbers) + 1) + "|")
    for name, of_seeds in curves.items():
        columns = list(zip(*of_seeds.values(), strict=True))
        spread = [f" ± {stdev(values):.3f}" if len(values) > 1 else "" for values in columns]
        print(f"| {name} | " + " | ".join(f"{fmean(v):.3f}{s}" for v, s in zip(columns, spread, strict=True)) + " |")


if __name__ == "__main__":
    main()
