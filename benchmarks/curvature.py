"""Squared per-sample gradients against the limit and against other libraries, on a real model and real text.

    python benchmarks/curvature.py [--model FOLDER] [--lengths 25 64 256] [--repeats 5] [--peers] [--json]

The yardstick is a plain batched forward and backward pass with all weight gradients: same batches, dtype, attention and
threads, gradients set to None before each. Every method's time is given as a ratio to the yardstick that ran just
before it; the median over the repeats counts. ``rel_error`` is the largest relative error of a tensor (Frobenius norms)
against one backward pass per sample in float64, peak memory that of the whole process while a method runs (the result's
own 4 bytes per weight and the model's weights included). Errors and memory are those of every eighth batch; the loop
and other libraries are timed on these too, as is the yardstick beside them.

Other libraries are measured with --peers where they are installed; what each can't do is said in its ``note``:

    pip install --no-deps -r benchmarks/curvature-peers.txt
"""

import argparse
import copy
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defensekit.gradients import kernel, squared_gradients, tokens_within
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.testing.gradients import squared_gradients_by_loop
from defensekit.text import Row, batches, encode
from defensekit_demo.minilm import MiniLM
from defensekit_demo.reviews import MovieReviews

MIB = 2**20
BUDGET = 16 * MIB
# Rows per length; 256 is what a recipe takes by default, and half of it takes minutes at the longest.
ROWS = {25: 256, 64: 256, 256: 128}

Batch = dict[str, Tensor]
Squares = dict[str, Tensor]
Method = Callable[[nn.Module, list[Batch]], Squares]


# -- text ----------------------------------------------------------------------------------------------------------


def texts(length: int, count: int, tokenizer: Any) -> list[Row]:
    """Real sentences of about ``length`` tokens, joined where one is too short."""
    rows: list[Row] = []
    parts: list[str] = []
    tokens = 0
    for row in MovieReviews().load().train:
        tokens += len(tokenizer(row.text, add_special_tokens=False)["input_ids"])
        parts.append(row.text)
        if tokens >= 0.9 * length:
            if tokens <= 1.3 * length:
                rows.append(Row(len(rows), " ".join(parts), row.label))
            parts, tokens = [], 0
        if len(rows) == count:
            return rows
    raise SystemExit(f"there is not text enough for {count} rows of {length} tokens")


# -- methods: the sum over all samples of squared gradients, by parameter name ---------------------------------------


def losses(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(**{name: values for name, values in batch.items() if name != "labels"}).logits
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def yardstick(model: nn.Module, inputs: list[Batch]) -> Squares:
    """Not the squares at all: what an ordinary training step computes."""
    for batch in inputs:
        model.zero_grad(set_to_none=True)
        losses(model, batch).sum().backward()
    model.zero_grad(set_to_none=True)
    return {}


def ours(model: nn.Module, inputs: list[Batch]) -> Squares:
    return squared_gradients(model, inputs)[0]


def ours_without_kernel(model: nn.Module, inputs: list[Batch]) -> Squares:
    load = kernel.load
    kernel.load = lambda: None  # type: ignore[assignment]
    try:
        return ours(model, inputs)
    finally:
        kernel.load = load


def trimmed(batch: Batch, n: int) -> Batch:
    length = int(batch["attention_mask"][n].sum())
    return {k: v[n : n + 1] if v.dim() == 1 else v[n : n + 1, :length] for k, v in batch.items()}


def loop(model: nn.Module, inputs: list[Batch]) -> Squares:
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in inputs:
        for n in range(len(batch["labels"])):
            model.zero_grad(set_to_none=True)
            losses(model, trimmed(batch, n)).sum().backward()
            for name, p in model.named_parameters():
                if p.grad is not None:
                    sums[name].addcmul_(p.grad, p.grad)
    model.zero_grad(set_to_none=True)
    return sums


def vmap(model: nn.Module, inputs: list[Batch]) -> Squares:
    """torch.func: vmap of grad, 8 samples at a time (all at once would take 90 MB each)."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def loss(parameters: Squares, sample: Batch) -> Tensor:
        inputs = spread_mask({k: v[None] for k, v in sample.items() if k != "labels"})
        logits = torch.func.functional_call(model, parameters, (), inputs).logits
        return nn.functional.cross_entropy(logits, sample["labels"][None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    for batch in inputs:
        for first in range(0, len(batch["labels"]), 8):
            part = {k: v[first : first + 8] for k, v in batch.items()}
            for name, gradient in gradients(parameters, part).items():
                sums[name] += gradient.square_().sum(0)
    return sums


def spread_mask(inputs: Batch) -> Batch:
    """The mask as attention adds it: transformers looks into a plain one, which vmap does not allow."""
    lowest = torch.finfo(torch.float32).min
    return {**inputs, "attention_mask": (1.0 - inputs["attention_mask"][:, None, None, :].float()) * lowest}


def spelled_out(batch: Batch) -> Batch:
    """Positions for every sample of its own: Opacus and BackPACK take a batch of 1 for a single sample."""
    shape = batch["input_ids"].shape
    return {**batch, "position_ids": torch.arange(shape[1]).expand(shape).clone()}


def opacus(model: nn.Module, inputs: list[Batch]) -> Squares:
    from opacus import GradSampleModule

    model = copy.deepcopy(model).train()  # in eval mode it sees nothing; dropout is switched off instead
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    wrapped = GradSampleModule(model, loss_reduction="sum")
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for whole in inputs:
        for first in range(0, len(whole["labels"]), 8):
            batch = spelled_out({k: v[first : first + 8] for k, v in whole.items()})
            wrapped.zero_grad(set_to_none=True)
            losses(wrapped, batch).sum().backward()
            for name, p in wrapped.named_parameters():
                sums[name.removeprefix("_module.")] += p.grad_sample.square_().sum(0)
                p.grad_sample = None
    return sums


def backpack(model: nn.Module, inputs: list[Batch]) -> Squares:
    """SumGradSquared for the layers that it knows; what it can't do is missing from the result."""
    from backpack import backpack as extended_backward
    from backpack import extend, extensions

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # refused; padding gets no gradient here anyway
        if isinstance(module, nn.Linear | nn.Embedding):
            extend(module)
    sums: Squares = {}
    for batch in inputs:
        model.zero_grad(set_to_none=True)
        with extended_backward(extensions.SumGradSquared()):
            losses(model, spelled_out(batch)).sum().backward()
        for name, p in model.named_parameters():
            if hasattr(p, "sum_grad_squared"):
                sums[name] = sums[name] + p.sum_grad_squared if name in sums else p.sum_grad_squared
                del p.sum_grad_squared
    return sums


def laplace(model: nn.Module, inputs: list[Batch]) -> Squares:
    """CurvlinopsEF of laplace-torch, whose diagonal squares vmap's gradients of a whole batch, flattened."""
    from laplace.curvature.curvlinops import CurvlinopsEF

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(model)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(**spread_mask({"input_ids": x[:, 0], "attention_mask": x[:, 1]})).logits
            return logits

    wrapped = Logits()
    engine = CurvlinopsEF(wrapped, "classification")
    total = torch.zeros(sum(p.numel() for p in model.parameters()))
    for whole in inputs:
        for first in range(0, len(whole["labels"]), 8):
            batch = {k: v[first : first + 8] for k, v in whole.items()}
            x = torch.stack([batch["input_ids"], batch["attention_mask"]], 1)
            total += engine.diag(x, batch["labels"])[1].detach()
    out, start = {}, 0
    for name, p in model.named_parameters():
        out[name] = total[start : start + p.numel()].view_as(p)
        start += p.numel()
    return out


OURS: dict[str, Method] = {"ours": ours, "ours, no kernel": ours_without_kernel, "loop": loop}
PEERS: dict[str, tuple[Method, str]] = {
    "torch.func vmap(grad)": (vmap, "torch"),
    "opacus": (opacus, "opacus"),
    "backpack": (backpack, "backpack-for-pytorch"),
    "laplace (curvlinops)": (laplace, "laplace-torch"),
}


# -- measuring -----------------------------------------------------------------------------------------------------


@contextmanager
def peak() -> Iterator[dict[str, float]]:
    """The highest resident size of the process within, in MiB (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    high: dict[str, float] = {}
    yield high
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    high["mib"] = int(line.split()[1]) / 1024


def seconds(method: Method, model: nn.Module, inputs: list[Batch]) -> float:
    start = time.perf_counter()
    method(model, inputs)
    return time.perf_counter() - start


def errors(got: Squares, expected: Squares) -> tuple[float, list[str]]:
    """The largest relative error, and the tensors that are missing. What is 0 but for rounding (keys' biases) counts
    by the model's largest."""
    largest = max(float(tensor.norm()) for tensor in expected.values())
    errors = [
        float((got[name].double() - tensor).norm()) / max(float(tensor.norm()), 1e-8 * largest)
        for name, tensor in expected.items()
        if name in got
    ]
    return max(errors), [name for name in expected if name not in got]


def measure(
    name: str,
    method: Method,
    model: nn.Module,
    some: list[Batch],
    expected: Squares,
    inputs: list[Batch],
    repeats: int,
) -> dict[str, Any]:
    """A row of the table: errors and memory on some batches, time on those that are given for it."""
    row: dict[str, Any] = {"method": name}
    try:
        with peak() as memory:
            got = method(model, some)
        row["rel_error"], missing = errors(got, expected)
        if missing:
            row["note"] = f"can't do {len(missing)} of {len(expected)} tensors, such as {missing[0]}"
        del got
    except Exception as error:  # another library's failure is a result
        return row | {"note": f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    pairs = [(seconds(yardstick, model, inputs), seconds(method, model, inputs)) for _ in range(repeats)]
    ratios = sorted(mine / base for base, mine in pairs)
    row |= {"ratio": statistics.median(ratios), "ratio_min": ratios[0], "ratio_max": ratios[-1]}
    return row | {"seconds": statistics.median(mine for _, mine in pairs), "peak_mib": memory["mib"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a local encoder (MiniLM of the demo)")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="measure other libraries too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.model or MiniLM().folder()
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    model = load_model(folder, ("negative", "positive")).eval()
    rows = []
    for length in arguments.lengths:
        written = texts(length, ROWS.get(length, max(8, 8192 // length)), tokenizer)
        tokens = tokens_within(model, BUDGET)
        packed = [dict(batch) for _, batch in batches(encode(tokenizer, written, 512), tokenizer, len(written), tokens)]
        some = packed[::8]
        expected = reference(model, some)
        seconds(yardstick, model, packed)
        with peak() as memory:
            seconds(yardstick, model, some)
        base = statistics.median(seconds(yardstick, model, packed) for _ in range(3))
        shapes = [tuple(batch["input_ids"].shape) for batch in packed]
        about = {"length": length, "rows": len(written), "batches": shapes}
        rows.append({"method": "yardstick", "ratio": 1.0, "seconds": base, "peak_mib": memory["mib"], **about})
        for name, method in OURS.items():
            timed = some if name == "loop" else packed
            repeats = arguments.repeats if name == "ours" else min(arguments.repeats, 2)
            rows.append({"length": length, **measure(name, method, model, some, expected, timed, repeats)})
            say(rows[-1])
        for name, (method, distribution) in PEERS.items() if arguments.peers else ():
            try:
                row = {**measure(name, method, model, some, expected, some, 1), "version": version(distribution)}
            except PackageNotFoundError:
                row = {"method": name, "note": "not installed"}
            rows.append({"length": length, **row})
            say(rows[-1])
    result = {
        "rows": rows,
        "environment": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "kernel": kernel.load() is not None,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    }
    if arguments.json:
        json.dump(result, sys.stdout)
        print()
        return
    print("| length | method | ratio (least to greatest) | seconds | peak MiB | rel. error | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        spread = f" ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})" if "ratio_min" in row else ""
        ratio = f"{row['ratio']:.2f}{spread}" if "ratio" in row else "-"
        cells = [
            f"{row[k]:{f}}" if k in row else "-"
            for k, f in [("seconds", ".2f"), ("peak_mib", ".0f"), ("rel_error", ".1e")]
        ]
        print("|", " | ".join([str(row["length"]), row["method"], ratio, *cells, row.get("note", "")]), "|")


def reference(model: nn.Module, inputs: list[Batch]) -> Squares:
    """The sum over the batches of one backward pass per sample in float64."""
    total: Squares = {}
    for batch in inputs:
        for name, squares in squared_gradients_by_loop(model, batch)[0].items():
            total[name] = total[name] + squares if name in total else squares
    return total


def say(row: dict[str, Any]) -> None:
    print(json.dumps(row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
