"""How the cost of squared per-sample gradients grows: over samples, length and model size.

    python benchmarks/curvature_growth.py [--largest 4096] [--json]

BERT with random weights and random tokens: what they are does not matter for the cost. One axis at a time.
``extra_mib`` is the peak of the process above its size with the model loaded, the result's 4 bytes per weight included.
"""

import argparse
import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from defensekit.gradients import squared_gradients, tokens_within

BUDGET = 16 * 2**20
# layers, width, heads
MODELS = {"MiniLM": (6, 384, 12), "BERT-medium": (8, 512, 8), "BERT-base": (12, 768, 12)}


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process, MiB (Linux)."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) / 1024


def cost(model: BertForSequenceClassification, samples: int, length: int) -> dict[str, Any]:
    """Seconds and memory of one estimate."""
    size = max(1, tokens_within(model, BUDGET) // length)
    batches = []
    for first in range(0, samples, size):
        n = min(size, samples - first)
        ids = torch.randint(1000, 20000, (n, length))
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(0, 2, (n,))})
    squared_gradients(model, batches[:1])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    squared_gradients(model, batches)
    seconds = time.perf_counter() - start
    return {
        "samples": samples,
        "length": length,
        "batch": size,
        "seconds": seconds,
        "ms_per_sample": 1000 * seconds / samples,
        "extra_mib": resident("VmHWM") - before,
        "result_mib": sum(p.numel() for p in model.parameters()) * 4 / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=4096, help="samples at most")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    counts = [n for n in (64, 256, 1024, 4096) if n <= arguments.largest]
    plan = [("samples", "MiniLM", n, 25) for n in counts]
    plan += [("length", "MiniLM", 8192 // length, length) for length in (16, 32, 64, 128, 256, 512)]
    plan += [("model", name, 64, 64) for name in MODELS]
    rows, models = [], {}
    for axis, name, samples, length in plan:
        if name not in models:
            layers, width, heads = MODELS[name]
            config = BertConfig(
                num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width
            )
            models = {name: BertForSequenceClassification(config).eval()}
        rows.append({"axis": axis, "model": name, **cost(models[name], samples, length)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if arguments.json:
        environment = {"torch": torch.__version__, "threads": torch.get_num_threads(), "budget_mib": BUDGET / 2**20}
        json.dump({"rows": rows, "environment": environment}, sys.stdout)
        print()
        return
    print("| axis | model | samples | length | batch | seconds | ms per sample | extra MiB | of it the result |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["axis"], row["model"], row["samples"], row["length"], row["batch"]]
        numbers = [f"{row['seconds']:.1f}", f"{row['ms_per_sample']:.1f}"]
        numbers += [f"{row['extra_mib']:.0f}", f"{row['result_mib']:.0f}"]
        print("|", " | ".join([*map(str, cells), *numbers]), "|")


if __name__ == "__main__":
    main()
