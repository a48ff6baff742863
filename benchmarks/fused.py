"""The fused kernel for squared per-sample gradients beside its plain path and the limit, at layers of three models.

    python benchmarks/fused.py [--repeats 20] [--tiny] [--json]

On a GPU, in float32. The yardstick is one product of all samples' tokens, left^T right, which has as many operations:
2 N T A B. ``of_limit`` is a path's rate as a share of it, ``ratio`` the kernel's time over the plain path's, medians
over the repeats, one path right after the other. The plain path writes and reads a product for every sample, N A B
floats; ``written_mib`` is what that would be. ``--tiny`` is a trial of the script itself: small layers, on the
processor, where Triton interprets the kernel (TRITON_INTERPRET=1) if it is installed.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from defensekit.gradients import products

SAMPLES, TOKENS = 16, 128
LAYERS = {
    "MiniLM, attention": (384, 384),
    "MiniLM, feed-forward": (384, 1536),
    "BERT-base, attention": (768, 768),
    "BERT-base, feed-forward": (768, 3072),
    "1B, attention": (2048, 2048),
    "1B, feed-forward": (2048, 8192),
}


def measure(name: str, a: int, b: int, device: str, repeats: int, samples: int, tokens: int) -> dict[str, Any]:
    """Median seconds of the paths at one layer, and what follows from them."""
    left, right = torch.randn(samples, tokens, a, device=device), torch.randn(samples, tokens, b, device=device)
    used = torch.ones(samples, tokens, dtype=torch.bool, device=device)
    sums, norms = torch.zeros(a, b, device=device), torch.zeros(samples, dtype=torch.float64, device=device)
    paths: dict[str, Callable[[], Any]] = {
        "limit": lambda: left.flatten(0, 1).T @ right.flatten(0, 1),
        "plain": lambda: products._batched(left, right, sums, norms),
    }
    try:
        from defensekit.gradients import fused

        paths["fused"] = lambda: fused.squared_products(left, right, used, sums, norms)
    except ImportError:
        pass
    seconds: dict[str, list[float]] = {path: [] for path in paths}
    for i in range(repeats + 1):
        for path, call in paths.items():
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            if i:  # the first call compiles
                seconds[path].append(time.perf_counter() - started)
    median = {path: statistics.median(times) for path, times in seconds.items()}
    return {
        "layer": name,
        "seconds": median,
        "of_limit": {path: median["limit"] / median[path] for path in median if path != "limit"},
        "ratio": median["fused"] / median["plain"] if "fused" in median else None,
        "written_mib": samples * a * b * 4 / 2**20,
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="small layers on the processor: a trial of the script")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        sys.exit("there is no GPU; --tiny tries the script without one")
    device = "cpu" if given.tiny else "cuda"
    layers = {"tiny": (70, 33)} if given.tiny else LAYERS
    size = (2, 5) if given.tiny else (SAMPLES, TOKENS)
    found = [measure(name, *shape, device, given.repeats, *size) for name, shape in layers.items()]
    machine = torch.cuda.get_device_name() if device == "cuda" else "processor"
    if given.json:
        print(json.dumps({"machine": machine, "torch": torch.__version__, "layers": found}))
        return
    print(f"{machine}, torch {torch.__version__}; {size[0]} samples of {size[1]} tokens, float32")
    for one in found:
        shares = ", ".join(f"{path} {share:.2f} of the limit" for path, share in one["of_limit"].items())
        ratio = "Triton is not installed" if one["ratio"] is None else f"fused / plain {one['ratio']:.2f}"
        print(f"{one['layer']:<26} {shares}; {ratio}; a product each would write {one['written_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
