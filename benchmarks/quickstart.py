"""The quickstart over several seeds: ACC and ASR of the five models, median and spread, and the time.

    python benchmarks/quickstart.py [--recipe FILE] [--seeds 0 1 2] [--workspace DIR] [--json]

A seed decides the split of the data, the attack, the training and the defense. What is in the workspace already is
reused; the seconds are those that a model took when it was computed.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from defensekit.cli.progress import Progress
from defensekit.pipeline.run import run
from defensekit.recipe.loader import load_recipe
from defensekit.result.schema import Result

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(results: list[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Per model and measure, the spread over seeds."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for model in results[0].summary:
        rows = [result.summary[model] for result in results]
        measures = [name for name in rows[0] if all(row.get(name) is not None for row in rows)]
        out[model] = {name: spread([float(row[name] or 0) for row in rows]) for name in measures}
    return out


def main() -> None:
    """Run every seed, then print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    results = []
    for seed in arguments.seeds:
        with Progress() as progress:
            progress.message(f"seed {seed}")
            results.append(run(replace(recipe, seed=seed), arguments.workspace, [progress]))
    values = table(results)
    runs: list[dict[str, Any]] = [
        {
            "seed": seed,
            "summary": result.summary,
            "chosen": result.chosen.value if result.chosen else None,
            "computed_seconds": round(sum(stage.seconds or 0.0 for stage in result.stages), 1),
        }
        for seed, result in zip(arguments.seeds, results, strict=True)
    ]
    if arguments.json:
        environment = results[0].environment.model_dump()
        json.dump({"recipe": recipe.name, "models": values, "runs": runs, "environment": environment}, sys.stdout)
        print()
        return
    for run_ in runs:
        chosen = "" if run_["chosen"] is None else f"{run_['chosen']} was chosen, "
        print(f"seed {run_['seed']}: {chosen}{run_['computed_seconds']} s")
    print(f"{'median (least to greatest)':28}" + "".join(f"{name:>24}" for name in next(iter(values.values()))))
    for model, measures in values.items():
        cells = (f"{m['median']:.3f} ({m['min']:.3f} to {m['max']:.3f})" for m in measures.values())
        print(f"{model:28}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
