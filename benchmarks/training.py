"""What fine-tuning costs: what we add around the Trainer, how far both are from the machine's limit, and where it goes.

    python benchmarks/training.py [--rows 512] [--repeats 5] [--json]

MiniLM on movie-review sentences, batches of 32, no dropout, one epoch. Each repeat times, one after the other,
transformers' Trainer alone, the same through `fine_tune`, the Trainer with rows in random order, `fine_tune` with fine
grouping, and, where bfloat16 is native, `fine_tune` under it with attention in float32 and without. The least of the
repeats counts, since other work on the machine only adds (with one thread the processor's seconds count, otherwise
real ones). The limit is the machine's own float32 matrix product (1024 by 1024, same process and threads, best of the
run): what the products of the model's weights with the rows' own tokens, forward and backward, would take at that
rate. The parts are torch.profiler's, of one more `fine_tune`, scaled to its least time.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.trainer_pt_utils import LengthGroupedSampler

from defensekit.models.inference import predict
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.text import Row, batches, encode
from defensekit.training import ByLength, Precision, TrainingSettings, device_type, fine_tune, native_precision
from defensekit_demo.minilm import MiniLM
from defensekit_demo.reviews import MovieReviews

LENGTH, SIZE, SIDE = 128, 32, 1024
SETTINGS = TrainingSettings(epochs=1, learning_rate=1e-4, batch_size=SIZE, dropout=False, grouping="coarse")
FINE = SETTINGS.model_copy(update={"grouping": "fine"})
# What torch.profiler calls them; the first that fits counts.
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("scaled_dot_product",),
    "GELU": ("gelu",),
    "LayerNorm": ("layer_norm",),
    "AdamW": ("_adamw_",),
    "gradient norms": ("vector_norm", "_foreach_norm"),
    "zeroed memory": ("fill_", "zero_"),
    "data": ("DataLoader",),
}


def product_rate() -> float:
    """Floating-point operations per second of a float32 matrix product."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / min(seconds(lambda: a @ b) for _ in range(8))


def clock() -> float:
    """Seconds of the processor where there is one thread, which other work on the machine stretches less; else real."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(call: Callable[[], Any], clock: Callable[[], float] = clock) -> float:
    """Seconds of a call."""
    start = clock()
    call()
    return clock() - start


class Padded(transformers.DataCollatorWithPadding):
    """Counts tokens, the rows' own and with padding."""

    own = total = 0

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        batch = super().__call__(features)
        self.own += int(batch["attention_mask"].sum())
        self.total += batch["attention_mask"].numel()
        return batch


def trainer_alone(model: Model, tokenizer: Tokenizer, rows: list[Row], order: str) -> Padded:
    """The Trainer with our arguments and nothing of ours around it; dropout is off in the model's own config."""
    collator = Padded(tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            num_train_epochs=1,
            learning_rate=SETTINGS.learning_rate,
            per_device_train_batch_size=SIZE,
            optim="adamw_torch_fused",
            train_sampling_strategy=order,
            use_cpu=device_type() == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        dataset = encode(tokenizer, rows, LENGTH)
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collator)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return collator


def ours(
    model: Model,
    tokenizer: Tokenizer,
    rows: list[Row],
    settings: TrainingSettings = SETTINGS,
    precision: Precision = "float32",
) -> None:
    fine_tune(model, tokenizer, rows, settings, max_length=LENGTH, precision=precision, seed=42)


def ours_in_bfloat16(model: Model, tokenizer: Tokenizer, rows: list[Row], attention_too: bool) -> None:
    """`fine_tune` under bfloat16, as it is (attention in float32) or with attention in bfloat16 as well."""
    as_it_is = nullcontext() if not attention_too else patch("defensekit.training.attention_in_float32", nullcontext)
    with as_it_is:
        ours(model, tokenizer, rows, precision="bfloat16")


def ungrouped(model: Model, tokenizer: Tokenizer, rows: list[Row]) -> None:
    """`predict`, its batches in the order of the rows."""
    encoded = encode(tokenizer, rows, LENGTH)
    with torch.inference_mode():
        for start in range(0, len(encoded), 64):
            [(_, batch)] = batches(encoded[start : start + 64], tokenizer, 64)
            model(**batch)


def parts(model: Model, tokenizer: Tokenizer, rows: list[Row]) -> dict[str, float]:
    """Shares of the time of `fine_tune`; the rest is small operations, and Python between operations."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        wall = seconds(lambda: ours(model, tokenizer, rows), time.perf_counter)
    taken = dict.fromkeys([*PARTS, "other operations"], 0.0)
    for event in profiled.key_averages():
        fitting = (part for part, names in PARTS.items() if any(name in event.key for name in names))
        taken[next(fitting, "other operations")] += event.self_cpu_time_total / 1e6 / wall
    return taken | {"between operations": 1 - sum(taken.values())}


def padding(tokenizer: Tokenizer) -> list[dict[str, float]]:
    """Tokens with padding over the rows' own, one pass, by the number of rows and the size of batches."""
    rows, out = MovieReviews().load().train, []
    for count, size in ((256, 16), (512, 32), (2000, 32), (6900, 32)):
        lengths = [len(row["input_ids"]) for row in encode(tokenizer, Random(0).sample(rows, count), LENGTH)]
        torch.manual_seed(0)
        coarse = LengthGroupedSampler(size, lengths=lengths)
        orders = {
            "random": torch.randperm(count).tolist(),
            "coarse": list(coarse),
            "fine": list(ByLength(lengths, size)),
        }
        shares: dict[str, float] = {"rows": count, "batch": size}
        for name, order in orders.items():
            grouped = [[lengths[i] for i in order[start : start + size]] for start in range(0, count, size)]
            shares[name] = sum(max(batch) * len(batch) for batch in grouped) / sum(lengths)
        out.append(shares)
    return out


def products(model: Model, tokens: int) -> int:
    """Operations of the weights' products: a multiplication and an addition per weight and token, thrice."""
    layers = [module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)]
    return 6 * tokens * sum(layer.weight.numel() for layer in layers)


def measure(count: int, repeats: int) -> dict[str, Any]:
    """Everything, in one run."""
    torch.manual_seed(0)
    folder = MiniLM().folder()
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, ("negative", "positive"))
    model.config.pad_token_id = tokenizer.pad_token_id
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    rows = Random(0).sample(MovieReviews().load().train, count)
    trainer_alone(model, tokenizer, rows[:SIZE], "group_by_length")  # what is done once per process
    times: dict[str, list[float]] = {
        "trainer": [],
        "ours": [],
        "random order": [],
        "fine": [],
        "answers": [],
        "ungrouped": [],
    }
    rates, tokens = [product_rate()], {}
    for repeat in range(repeats):
        for order in ("group_by_length", "random"):
            start = clock()
            collator = trainer_alone(model, tokenizer, rows, order)
            times["trainer" if order == "group_by_length" else "random order"].append(clock() - start)
            tokens[order] = collator.total / collator.own
            if order == "group_by_length":
                times["ours"].append(seconds(lambda: ours(model, tokenizer, rows)))
        times["fine"].append(seconds(lambda: ours(model, tokenizer, rows, FINE)))
        if native_precision() == "bfloat16":
            for name, too in (("bfloat16", False), ("bfloat16, attention too", True)):
                run = partial(ours_in_bfloat16, model, tokenizer, rows, too)
                times.setdefault(name, []).append(seconds(run))
        model.eval()
        times["answers"].append(
            seconds(lambda: predict(model, tokenizer, rows, max_length=LENGTH, precision="float32"))
        )
        times["ungrouped"].append(seconds(lambda: ungrouped(model, tokenizer, rows)))
        rates.append(product_rate())
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
    least = {name: min(values) for name, values in times.items()}
    limit = products(model, collator.own) / max(rates)
    return {
        "rows": count,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "native_precision": native_precision(),
        "product_gflops": {"best": max(rates) / 1e9, "median": statistics.median(rates) / 1e9},
        "seconds": {
            name: {"least": min(v), "median": statistics.median(v), "most": max(v)} for name, v in times.items()
        },
        "rows_per_second": {name: count / value for name, value in least.items()},
        "added_around_trainer": least["ours"] / least["trainer"] - 1,
        "tokens_with_padding": tokens,
        "padding": padding(tokenizer),
        "limit_seconds": limit,
        "of_limit": limit / least["ours"],
        "tokenizing_rows_per_second": count / min(seconds(lambda: encode(tokenizer, rows, LENGTH)) for _ in range(3)),
        "parts": parts(model, tokenizer, rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    measured = measure(arguments.rows, arguments.repeats)
    if arguments.json:
        json.dump(measured, sys.stdout)
        print()
        return
    for name, value in measured["rows_per_second"].items():
        spread = measured["seconds"][name]
        print(f"{name:23} {value:7.1f} rows/s   {spread['least']:.2f} to {spread['most']:.2f} s")
    print(f"added around the Trainer: {measured['added_around_trainer']:.1%}")
    for order, ratio in measured["tokens_with_padding"].items():
        print(f"tokens with padding, {order}: {ratio:.3f} of the rows' own")
    for row in measured["padding"]:
        print("  " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    print(
        f"matrix product: {measured['product_gflops']['best']:.0f} Gflop/s; of that limit: {measured['of_limit']:.1%}"
    )
    print(f"tokenizing: {measured['tokenizing_rows_per_second']:.0f} rows/s")
    for part, share in measured["parts"].items():
        print(f"  {part:20} {share:6.1%}")


if __name__ == "__main__":
    main()
