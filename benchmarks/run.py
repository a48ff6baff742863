"""Where the seconds of a run go: a recipe computed in a workspace of its own, each second under one name.

    python benchmarks/run.py [--recipe FILE] [--set KEY=VALUE] [--json]

Products are those of the models' linear layers, at the rate of the machine's own product (1024 by 1024, same process,
threads and precision, best of before and after): over tokens that the attention mask has, and over padding. Their
operations are counted, three times as many where there is a backward pass. Imports, tokenising, collating (padding to
tensors) and the optimizer's steps are timed, with one thread by the processor's seconds: then waiting is what passed
without this process computing. The rest is products below that rate, attention, other operations, Python, and files.
Only what this process computes is seen, so every stage is computed in it, one after the other: set OMP_NUM_THREADS=1
for what a stage takes beside another one, as `run` and `purify` compute them where there are two cores.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

START = time.perf_counter(), time.process_time()

import torch  # noqa: E402
import transformers  # noqa: E402
from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from transformers.pytorch_utils import Conv1D  # noqa: E402

import defensekit.pipeline.stages  # noqa: E402, F401
from defensekit.pipeline.run import run  # noqa: E402
from defensekit.recipe.loader import load_recipe  # noqa: E402
from defensekit.training import native_precision  # noqa: E402

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
SIDE = 1024


def clock() -> float:
    """Seconds of the processor where there is one thread, else real ones."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


IMPORTS = clock() - START[torch.get_num_threads() == 1]


def product_rate() -> float:
    """Operations per second of a matrix product, in the precision that `precision: auto` takes."""
    a = torch.randn(SIDE, SIDE, dtype=getattr(torch, native_precision()))
    best = float("inf")
    for _ in range(8):
        start = clock()
        a @ a
        best = min(best, clock() - start)
    return 2 * SIDE**3 / best


class Account:
    """Seconds by name, and operations of linear layers over tokens and over padding."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, float] = defaultdict(float)
        self.real = 1.0  # the share of the batch's places that are no padding
        self.step = 0.0

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*given: Any, **named: Any) -> Any:
            start = clock()
            try:
                return call(*given, **named)
            finally:
                self.seconds[name] += clock() - start

        return timed

    def linear(self, module: Any, given: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Linear | Conv1D):
            passes = 3 if output.requires_grad else 1
            operations = 2 * passes * module.weight.numel() * (output.numel() // output.shape[-1])
            self.operations["products"] += operations * self.real
            self.operations["products of padding"] += operations * (1 - self.real)

    def watch(self) -> None:
        """Watch everything that this process computes from now on."""
        base, model = transformers.PreTrainedTokenizerBase, transformers.PreTrainedModel
        base.__call__ = self.timed("tokenising", base.__call__)
        base.pad = self.timed("collating", base.pad)

        def called(module: Any, *given: Any, **named: Any) -> Any:
            if (mask := named.get("attention_mask")) is not None and mask.dim() == 2:
                self.real = float(mask.float().mean())
            return torch.nn.Module.__call__(module, *given, **named)

        model.__call__ = called
        torch.nn.modules.module.register_module_forward_hook(self.linear)

        def before(*_: Any) -> None:
            self.step = clock()

        def after(*_: Any) -> None:
            self.seconds["optimizer"] += clock() - self.step

        register_optimizer_step_pre_hook(before)
        register_optimizer_step_post_hook(after)


def measure(path: Path, overrides: list[str]) -> dict[str, Any]:
    """Everything, in one run."""
    recipe = load_recipe(path, [*overrides, "executor=in-process"])
    account, rates = Account(), [product_rate()]
    account.watch()
    with tempfile.TemporaryDirectory() as workspace:
        result = run(recipe, workspace)
    wall, computing = time.perf_counter() - START[0], time.process_time() - START[1]
    rates.append(product_rate())
    parts = {"imports": IMPORTS, **account.seconds}
    parts |= {name: count / max(rates) for name, count in account.operations.items()}
    if torch.get_num_threads() == 1:
        parts["waiting"] = wall - computing
    parts["rest"] = wall - sum(parts.values())
    kinds: dict[str, float] = defaultdict(float)
    for stage in result.stages:
        kinds[stage.kind] += stage.seconds or 0.0
    return {
        "recipe": result.recipe["name"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": native_precision(),
        "product_gflops": max(rates) / 1e9,
        "seconds": wall,
        "parts": parts,
        "shares": {name: seconds / wall for name, seconds in parts.items()},
        "stages": dict(sorted(kinds.items(), key=lambda kind: -kind[1])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `defensekit run`")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    measured = measure(arguments.recipe, arguments.set)
    if arguments.json:
        json.dump(measured, sys.stdout)
        print()
        return
    print(f"{measured['recipe']}: {measured['seconds']:.1f} s, {measured['threads']} threads; ", end="")
    print(f"matrix product: {measured['product_gflops']:.0f} Gflop/s")
    for name, seconds in sorted(measured["parts"].items(), key=lambda part: -part[1]):
        print(f"  {name:20} {seconds:7.1f} s {measured['shares'][name]:6.1%}")
    print("by stage: " + ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in measured["stages"].items()))


if __name__ == "__main__":
    main()
