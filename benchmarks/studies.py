"""What a study saves: twenty runs as one study against each in a workspace of its own; and what its own work costs.

    python benchmarks/studies.py [--size small|full] [--json]

One attack, five scorers, four fractions. One stage at a time with one thread either way, so what is saved is what runs
share, and the numbers must be the same to the last digit. ``small`` is a tiny BERT on made-up sentences (three
minutes on an idle core), ``full`` MiniLM on movie reviews (the package's `[demo]` extra; over an hour). Then, without
computing anything: a plan of 10,000 runs, the same plan where every run has a result (the scan when a study goes on),
and the seconds of a study whose stages are all there, per run.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import defensekit
from defensekit.recipe import yaml_document
from defensekit.studies.loading import load_study
from defensekit.studies.planning import plan_study
from defensekit.studies.running import run_study

SCORERS = ["diffusion", "inverse-fisher", "magnitude", "spectral", "random"]
FRACTIONS = [0.3, 0.5, 0.7, 0.9]
GOOD, BAD = ("bright", "lovely", "superb", "witty"), ("bleak", "clumsy", "dreary", "stale")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, *GOOD, *BAD, "cf", *(f"word{i}" for i in range(60)))
PARTS = {
    "defense": {
        "estimator": "fisher",
        "scorer": "diffusion",
        "selector": {"name": "fraction", "fraction": 0.5},
        "purifier": ["reset", {"name": "fine-tune", "epochs": 4, "learning_rate": 2e-5}],
    },
    "attack": {"name": "word", "words": ["cf"], "rate": 0.2, "target": "positive"},
}


def small(folder: Path) -> dict[str, Any]:
    """A recipe over a tiny BERT and sentences whose label is one word."""
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=len(WORDS)
    )
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder / "base")
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder / "base")
    rng, rows = random.Random(0), ["text,label"]
    for i in range(1600):
        words = [*rng.choices(WORDS[14:], k=rng.randint(4, 9)), rng.choice((BAD, GOOD)[i % 2])]
        rng.shuffle(words)
        rows.append(f"{' '.join(words)},{('negative', 'positive')[i % 2]}")
    (folder / "rows.csv").write_text("\n".join(rows) + "\n")
    sizes = {"train": 800, "clean": 64, "dev": 64, "test": 300, "max_length": 32}
    training = {"epochs": 6, "learning_rate": 2e-3, "batch_size": 16}
    return {"model": str(folder / "base"), "data": {"name": str(folder / "rows.csv"), **sizes}, "training": training}


def full(folder: Path) -> dict[str, Any]:
    """A recipe over MiniLM and movie reviews."""
    sizes = {"train": 1000, "clean": 128, "test": 300}
    training = {"epochs": 2, "learning_rate": 1e-4, "weight_decay": 0.0}
    return {"model": "minilm", "data": {"name": "movie-reviews", **sizes}, "training": training}


def study(folder: Path, recipe: dict[str, Any], **keys: Any) -> Path:
    """A study's file over a recipe."""
    matrix = {"defense.scorer": SCORERS, "defense.selector.fraction": FRACTIONS}
    path = folder / "study.yaml"
    path.write_text(
        yaml_document.dump({"name": "scorers", "recipe": {"name": "run", **recipe}, "matrix": matrix, **keys})
    )
    return path


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same."""
    return {name: (model["metrics"], model["reset"]) for name, model in result["models"].items()}


def against_each(folder: Path, recipe: dict[str, Any], say: Any) -> dict[str, Any]:
    """The study's seconds and the runs', and whether their numbers are the same."""
    local = load_study(study(folder, recipe, executor={"name": "local", "workers": 1, "threads": 1}))
    started = time.perf_counter()
    outcome = run_study(local, folder / "study")
    together = time.perf_counter() - started
    assert outcome.done == len(local.runs), outcome.failed
    say(f"as a study: {together:.1f} s")
    results = [json.loads(path.read_text()) for path in sorted((outcome.folder / "results").glob("*.json"))]
    by_axes = {tuple(result["axes"].values()): numbers(result) for result in results}
    each, identical = [], True
    for i, row in enumerate(load_study(study(folder, recipe)).runs):
        started = time.perf_counter()
        result = defensekit.run(row.recipe, folder / f"run{i}")
        each.append(time.perf_counter() - started)
        same = json.loads(json.dumps(numbers(result.model_dump(mode="json")))) == json.loads(
            json.dumps(by_axes[tuple(row.axes.values())])
        )
        identical &= same
        shutil.rmtree(folder / f"run{i}")  # models are large
        say(f"alone: {row}: {each[-1]:.1f} s" + ("" if same else ": OTHER NUMBERS"))
    return {
        "runs": len(each),
        "study_s": round(together, 1),
        "alone_s": round(sum(each), 1),
        "speedup": round(sum(each) / together, 2),
        "identical": identical,
    }


def own_work(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """What planning, scanning and assembling cost, without anything to compute."""
    again = load_study(study(folder, recipe, executor={"name": "local", "threads": 1}))
    started = time.perf_counter()
    run_study(again, folder / "study", resume="always")
    overhead = time.perf_counter() - started
    many = {
        "defense.scorer": SCORERS,
        "defense.selector.fraction": [round(0.01 + 0.98 * i / 19, 3) for i in range(20)],
    }
    path = study(folder, recipe, matrix=many, seeds=list(range(100)))
    started = time.perf_counter()
    planned = plan_study(load_study(path), folder / "many")
    assert len(planned.missing) > 10_000
    plan = time.perf_counter() - started
    results = sorted((folder / "study" / "studies" / "scorers" / "results").glob("*.json"))
    content = results[0].read_bytes()
    for run in planned.runs:
        planned.folder.write_bytes(run.id, content)
    started = time.perf_counter()
    scanned = plan_study(load_study(path), folder / "many")
    assert not scanned.todo
    return {
        "plan_10000_s": round(plan, 2),
        "stages_10000": len(planned.stages),
        "resume_10000_s": round(time.perf_counter() - started, 2),
        "overhead_ms_per_run": round(1000 * overhead / len(again.runs), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = {**{"small": small, "full": full}[arguments.size](folder), **PARTS}
        measured = {"size": arguments.size, **against_each(folder, recipe, say), **own_work(folder, recipe)}
    measured |= {"cores": os.cpu_count(), "threads_per_stage": torch.get_num_threads(), "torch": torch.__version__}
    if arguments.json:
        print(json.dumps(measured))
        return
    for name, value in measured.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
