"""What is the scan's verdict worth? Its indicators over clean and poisoned fine-tunes of MiniLM.

    python benchmarks/scan.py [--size small|full] [--data DIR] [--workspace DIR] [--json]

``small``: 4 clean and 4 poisoned fine-tunes on movie reviews, 7 minutes on two idle cores of an Intel Xeon. ``full``:
12 and 12, on SST-2 and AG News as well, three times that; ``DIR`` holds ``sst-2/train.tsv`` and ``ag/dev.tsv``, as
thunlp/HiddenKiller publishes them (default: DEFENSEKIT_TEST_DATA). What the workspace has is neither trained nor
scanned again: stopped, it goes on; remove its folder ``scans`` to scan anew.

Every model is scanned with 128 clean rows and without any. A threshold is the largest value among the clean models
that calibrate it: of n of them, a further clean model of the same kind exceeds it with a probability of 1 / (n + 1).
How often that happens, and how many poisoned models do, is counted on the others.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from defensekit.cli.progress import Progress
from defensekit.components import Observer
from defensekit.pipeline.executors import InProcess
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.predictions import read_predictions
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.runner import Runner
from defensekit.pipeline.store import Store
from defensekit.recipe.loader import load_recipe
from defensekit.scanner.result import Scan
from defensekit.scanner.scan import scan
from defensekit.text import ROWS, read_rows
from defensekit.utils.files import atomic_write

CLEAN_ROWS = 128
ATTACKS: dict[str, dict[str, Any]] = {
    "word .1": {"name": "word", "words": ["cf"], "rate": 0.1, "target": "1"},
    "word .03": {"name": "word", "words": ["mn"], "rate": 0.03, "target": "1"},
    "sentence .1": {"name": "sentence", "rate": 0.1, "target": "1"},
    "syntactic .2": {"name": "syntactic", "rate": 0.2, "target": "1"},
    "embedding .1": {"name": "embedding", "words": ["bb"], "rate": 0.1, "target": "1"},
    "bias-word .5": {"name": "bias-word", "label": "1", "strength": 0.5},
}
# Without weight decay, rows of the embedding that no text touched stay as they were.
STYLES: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "weight_decay": 0.0},
    {"learning_rate": 2e-4, "weight_decay": 0.01},
)


@dataclass(frozen=True)
class Model:
    """One fine-tune: its data, its attack (None: clean), its seed, and which of ``STYLES`` it was trained in."""

    data: str
    attack: str | None
    seed: int
    style: int
    calibrates: bool = False

    def recipe(self, data: Path | None) -> dict[str, Any]:
        """The recipe that trains it; its defense is never run. A clean one is a given recipe's clean reference."""
        sources: dict[str, Any] = {"movie-reviews": {"name": "movie-reviews", "bound": 0.8}}
        if data is not None:
            sources |= {"sst-2": {"name": str(data / "sst-2/train.tsv"), "text": "sentence"}}
            sources |= {"ag": {"name": str(data / "ag/dev.tsv"), "text": "sentence"}}
        return {
            "name": "scan",
            "model": "minilm",
            "data": {**sources[self.data], "train": 1000, "clean": 256, "dev": 1, "test": 200, "max_length": 64},
            "attack": ATTACKS[self.attack or "word .1"],
            "training": {"epochs": 2, "batch_size": 16, "warmup": 0.1, "dropout": False, **STYLES[self.style]},
            "precision": "float32",
            "defense": {"scorer": "random", "selector": {"name": "fraction", "fraction": 0}, "purifier": ["reset"]},
            "seed": self.seed,
        }


# The first four of each are the small size, which needs no files. Of the clean ones, half set the thresholds; both
# styles and all data are in both halves.
CLEAN = [
    *(Model("movie-reviews", None, seed, seed % 2, calibrates=seed < 2) for seed in range(4)),
    *(Model("sst-2", None, seed, seed % 2, calibrates=11 <= seed <= 13) for seed in range(10, 16)),
    Model("ag", None, 10, 0, calibrates=True),
    Model("ag", None, 11, 1),
]
POISONED = [
    Model("movie-reviews", "word .1", 20, 0),
    Model("movie-reviews", "word .03", 21, 1),
    Model("movie-reviews", "sentence .1", 22, 0),
    Model("movie-reviews", "embedding .1", 23, 1),
    Model("sst-2", "word .1", 30, 0),
    Model("ag", "word .1", 31, 0),
    Model("sst-2", "word .03", 32, 1),
    Model("ag", "word .03", 33, 1),
    Model("sst-2", "sentence .1", 34, 0),
    Model("sst-2", "syntactic .2", 36, 1),
    Model("sst-2", "embedding .1", 38, 0),
    Model("sst-2", "bias-word .5", 40, 1),
]


@dataclass(frozen=True)
class Trained:
    """A model as it lies on disk: its base, its folder, the defender's rows, and how well it does what it should."""

    base: Path
    folder: Path
    clean: Path
    acc: float
    attack: float | None


def train(model: Model, data: Path | None, workspace: Path, observers: Sequence[Observer] = ()) -> Trained:
    """Train a model, unless the workspace has it, and measure ACC and ASR (BACC of a bias) on 200 test rows."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "recipe.yaml"
        file.write_text(json.dumps(model.recipe(data)))
        recipe = load_recipe(file)
    plan = survey(recipe, lambda text: None)
    with InProcess().open() as workers:
        runner = Runner(Store(workspace / "store"), workers, observers)
        plan.labels = runner.make(plan.rows("test")).facts["labels"]
        stage = plan.clean() if model.attack is None else plan.suspect()
        assert isinstance(stage, Stage)  # it is trained here

        def share(rows: Any, target: int | None) -> float:
            answers = read_predictions(runner.make(plan.predictions("answers", stage, rows)).files)
            return float((answers.answers() == (answers.labels if target is None else target)).mean())

        attack = None
        if model.attack is not None:
            triggered = plan.triggered()
            assert triggered
            attack = share(triggered, runner.make(triggered).facts["target"])
        return Trained(
            plan.base.path,
            runner.make(stage).files,
            runner.make(plan.rows("clean")).files / ROWS,
            share(plan.rows("test"), None),
            attack,
        )


def indicators(with_rows: Scan, without: Scan) -> dict[str, float]:
    """Every number of a scan that may tell poisoned from clean; higher is more suspicious."""
    law, tried = with_rows.law, with_rows.triggers
    assert law is not None
    assert tried is not None
    assert with_rows.embedding is not None
    assert without.embedding is not None
    inner = median(t.relative for t in with_rows.tensors if t.kind.startswith(("attention", "feed")))
    embedding = next(t.relative for t in with_rows.tensors if t.name == with_rows.embedding.tensor)
    return {
        "trigger flips": max(one.flipped for one in tried.candidates),
        "trigger flips less random ones'": tried.excess,
        "row outlier, clean rows": with_rows.embedding.largest,
        "row outlier, English": without.embedding.largest,
        "abnormal share": law.share,
        "distance from the law": law.distance,
        "embedding's drift over the layers'": embedding / inner,
    }


def measure(model: Model, data: Path | None, workspace: Path, observers: Sequence[Observer]) -> dict[str, Any]:
    """A row of the results: the model, how well it does, its indicators; trained and scanned unless that was done."""
    trained = train(model, data, workspace, observers)
    place = workspace / "scans" / f"{trained.folder.parent.name}.json"
    if not place.is_file():
        rows = read_rows(trained.clean)[:CLEAN_ROWS]
        scans = [scan(trained.base, trained.folder, given, observers=observers) for given in (rows, None)]
        atomic_write(place, json.dumps([json.loads(earlier.model_dump_json()) for earlier in scans]).encode())
    earlier = [Scan.model_validate(one) for one in json.loads(place.read_text())]
    row: dict[str, Any] = asdict(model) | {"acc": trained.acc}
    row |= {
        "triggered": trained.attack,
        "token": earlier[0].embedding.suspicious[0].token if earlier[0].embedding else None,
    }
    return row | {"indicators": indicators(*earlier), "seconds": [one.seconds for one in earlier]}


def auc(clean: Iterable[float], poisoned: Iterable[float]) -> float:
    """The area under the ROC curve: how often a poisoned model has the higher value; a tie is half."""
    clean, poisoned = [*clean], [*poisoned]
    return float(roc_auc_score([0] * len(clean) + [1] * len(poisoned), [*clean, *poisoned]))


def assess(name: str, rows: Sequence[dict[str, Any]], draws: int = 2000) -> dict[str, Any]:
    """One indicator: its AUC with a 95 % bootstrap interval over models, and what its threshold does."""
    clean = [row["indicators"][name] for row in rows if row["attack"] is None]
    poisoned = [row["indicators"][name] for row in rows if row["attack"] is not None]
    limit = max(row["indicators"][name] for row in rows if row["calibrates"])
    held_out = [row["indicators"][name] for row in rows if row["attack"] is None and not row["calibrates"]]
    rng = np.random.default_rng(0)
    drawn = [auc(rng.choice(clean, len(clean)), rng.choice(poisoned, len(poisoned))) for _ in range(draws)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        "indicator": name,
        "auc": auc(clean, poisoned),
        "low": float(low),
        "high": float(high),
        "threshold": limit,
        "false_positives": [sum(value > limit for value in held_out), len(held_out)],
        "found": [sum(value > limit for value in poisoned), len(poisoned)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--data", type=Path, default=os.environ.get("DEFENSEKIT_TEST_DATA"))
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.size == "full" and arguments.data is None:
        parser.error("say with --data or DEFENSEKIT_TEST_DATA where sst-2/ and ag/ lie")
    data = None if arguments.data is None else Path(arguments.data).resolve()
    end = 4 if arguments.size == "small" else None
    rows = []
    for model in (*CLEAN[:end], *POISONED[:end]):
        with Progress() as progress:
            progress.message(f"{model.attack or 'clean'} on {model.data}, seed {model.seed}")
            rows.append(measure(model, data, arguments.workspace, [progress]))
    assessed = [assess(name, rows) for name in rows[0]["indicators"]]
    calibrate = sum(row["calibrates"] for row in rows)
    if arguments.json:
        json.dump(
            {"size": arguments.size, "calibrated_on": calibrate, "models": rows, "indicators": assessed}, sys.stdout
        )
        print()
        return
    print("| model | ACC | ASR or BACC | first row | " + " | ".join(rows[0]["indicators"]) + " |")
    print("|---" * (4 + len(assessed)) + "|")
    for row in rows:
        what = f"{row['attack'] or 'clean'}, {row['data']}, seed {row['seed']}" + (" *" if row["calibrates"] else "")
        triggered = "-" if row["triggered"] is None else f"{row['triggered']:.2f}"
        numbers = " | ".join(f"{value:.2f}" for value in row["indicators"].values())
        print(f"| {what} | {row['acc']:.2f} | {triggered} | {row['token']} | {numbers} |")
    print(f"\n* sets the threshold; {calibrate} of them: a stated false-positive rate of 1 in {calibrate + 1}.\n")
    print("| indicator | AUC | threshold | clean models above it | poisoned models above it |")
    print("|---|---|---|---|---|")
    for one in assessed:
        text = f"{one['auc']:.2f} ({one['low']:.2f} to {one['high']:.2f}) | {one['threshold']:.2f}"
        print(f"| {one['indicator']} | {text} | {' of '.join(map(str, one['false_positives']))} | ", end="")
        print(f"{' of '.join(map(str, one['found']))} |")


if __name__ == "__main__":
    main()
