"""Curvature of models whose weights and curvature do not fit in memory together: seconds and peak memory.

    python benchmarks/large.py [--size full|triple|tiny] [--held 4096 1024] [--rows 8] [--folder DIR] [--json]

A causal Llama in bfloat16 with random weights and MiniLM's tokenizer is made in a temporary folder; `fisher` measures
it in float32 by its own loss on real sentences of at most 32 tokens, as `defensekit purify` does for a causal model.
Each ``--held`` (MiB of the result at a time) is a process of its own; what is put aside lies in the folder too. Memory
is read from /proc every 20 ms: anonymous (its own) and resident (with mapped files, which the system can take back).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from streaming import SIZES as STREAMED
from streaming import config, shapes, watched

SIZES = {
    "full": STREAMED["full"],
    "triple": STREAMED["triple"],
    "tiny": STREAMED["tiny"] | {"vocabulary": 32000},
}


def make(folder: Path, size: dict[str, int]) -> int:
    """Write a model with its tokenizer; the number of weights."""
    import torch
    from safetensors.torch import save_file

    from defensekit.models.loading import load_tokenizer
    from defensekit_demo.minilm import MiniLM

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(size)))
    load_tokenizer(MiniLM().folder()).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, Any] = {}
    weight_map: dict[str, str] = {}
    total = held = 0
    wanted = shapes(size)
    for name, shape in wanted.items():
        norm = len(shape) == 1
        values = torch.ones(shape) if norm else torch.randn(shape, generator=generator).mul_(0.02)
        shard[name] = values.bfloat16()
        total, held = total + shard[name].numel(), held + 2 * shard[name].numel()
        if held > size["shard"] or len(weight_map) + len(shard) == len(wanted):
            file = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
            save_file(shard, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            shard, held = {}, 0
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def measure(folder: Path, held: int, rows: int) -> dict[str, float]:
    """Seconds of one estimate."""
    import torch  # noqa: F401 - so that its import counts in no part

    from defensekit.defense import estimation
    from defensekit.models.checkpoint import Checkpoint
    from defensekit.models.pair import Pair
    from defensekit_demo.reviews import MovieReviews
    from defensekit_finepurifying.estimators.fisher import Fisher

    model = Checkpoint(folder / "model")
    begun = time.perf_counter()
    estimation.estimate(
        Pair(model, model),
        Fisher(held_mib=held),
        MovieReviews().load().train[:rows],
        max_length=32,
        seed=0,
        report=lambda done, total: None,
    )
    return {"estimate": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--held", type=int, nargs="+", default=[16384, 4096, 1024], help="MiB of the result at a time")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to make the model (a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measure(given.folder, given.job, given.rows)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        os.environ["TMPDIR"] = name
        weights = make(folder / "model", SIZES[given.size])
        for held in given.held:
            job = ["--job", str(held), "--folder", name, "--rows", str(given.rows)]
            rows.append({"held_mib": held, **watched([sys.executable, __file__, *job])})
            sys.stderr.write(f"{rows[-1]}\n")
    if given.json:
        print(json.dumps({"weights": weights, "samples": given.rows, "cpus": os.cpu_count(), "rows": rows}))
        return
    print(f"{weights:,} weights, {given.rows} rows, {os.cpu_count()} processors")
    print("| held, MiB | seconds | own memory, GiB | with mapped files, GiB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['held_mib']:,} | {row['seconds']} | {row['own_gib']} | {row['gib']} |")


if __name__ == "__main__":
    main()
