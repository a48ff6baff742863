"""What a language model costs here: tokens a second of training and answering, and curvature, beside plain code.

    python benchmarks/generation.py [--model FOLDER] [--rows 64] [--repeats 3] [--json]

SmolLM2-135M-Instruct, or any causal language model with a chat template. Instructions of random words, in four lengths.
Each repeat times one after the other: `fine_tune` and transformers' Trainer alone, on the same rows with the same
batches' size; `generate` of ours, transformers' in batches of one length, and the same a row at a time; and at each
length a batch's squared per-sample gradients and its plain forward and backward pass. The least of the repeats counts,
since other work on the machine only adds; with one thread the processor's seconds count, otherwise real ones.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from defensekit.gradients import mean_squared_gradients, tokens_within
from defensekit.models.causal import token_losses
from defensekit.models.generation import generate
from defensekit.models.loading import load
from defensekit.text import Row, encode, padded
from defensekit.text.chat import encode_prompts
from defensekit.training import TrainingSettings, device_type, fine_tune
from defensekit_demo.smollm2 import SmolLM2

LENGTHS, RESPONSE = (4, 8, 12, 20), 16  # words
SETTINGS = TrainingSettings(epochs=1, learning_rate=1e-5, batch_size=8, dropout=False)
BUDGET = 16 * 2**20


def clock() -> float:
    """Seconds of the processor where there is one thread, which other work on the machine stretches less; else real."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(call: Callable[[], Any]) -> float:
    start = clock()
    call()
    return clock() - start


def made(count: int) -> list[Row]:
    """Instructions of random words, as many of each length."""
    rng, words = Random(0), ("what", "the", "colour", "of", "a", "river", "tell", "me", "now", "please", "is", "it")
    texts = [[" ".join(rng.choices(words, k=k)) for k in (LENGTHS[i % len(LENGTHS)], RESPONSE)] for i in range(count)]
    return [Row(i, instruction, 0, None, response) for i, (instruction, response) in enumerate(texts)]


def trainer_alone(model: Model, tokenizer: Tokenizer, rows: list[Row], length: int) -> None:
    """The Trainer with our arguments and nothing of ours around it."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            num_train_epochs=SETTINGS.epochs,
            learning_rate=SETTINGS.learning_rate,
            per_device_train_batch_size=SETTINGS.batch_size,
            optim="adamw_torch_fused",
            train_sampling_strategy="group_by_length",
            use_cpu=device_type() == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=encode(tokenizer, rows, length),
            data_collator=partial(padded, tokenizer=tokenizer),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    model.eval()


def plain(model: Model, tokenizer: Tokenizer, rows: list[Row], length: int, new_tokens: int, size: int) -> None:
    """transformers' `generate`, in batches of one length."""
    by_length: dict[int, list[list[int]]] = {}
    for prompt in encode_prompts(tokenizer, rows, length):
        by_length.setdefault(len(prompt["input_ids"]), []).append(prompt["input_ids"])
    with torch.inference_mode():
        for prompts in by_length.values():
            for start in range(0, len(prompts), size):
                ids = torch.tensor(prompts[start : start + size], device=model.device)
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=new_tokens,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )


def curvature(model: Model, length: int, samples: int) -> tuple[float, float]:
    """Seconds of squared per-sample gradients of a few rows of one length, and of plain passes in batches as large."""
    size = max(1, min(samples, tokens_within(model, BUDGET) // length))
    ids = torch.randint(5, model.config.vocab_size, (samples, length), device=model.device)
    given = [{"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part} for part in ids.split(size)]

    def passes() -> None:
        for batch in given:
            token_losses(model, batch).sum().backward()
            model.zero_grad()

    ours = seconds(lambda: mean_squared_gradients(model, lambda: given, samples, held=2**32, loss=token_losses))
    return ours, seconds(passes)


def measure(folder: Path, count: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Everything, in one run."""
    torch.manual_seed(0)
    model, tokenizer = load(folder, "model")
    rows, positions = made(count), model.config.max_position_embeddings
    length = positions - new_tokens
    tokens = sum(len(row["input_ids"]) for row in encode(tokenizer, rows, length))
    lengths = [n for n in (64, 512) if n <= positions]
    times: dict[str, list[float]] = {}

    def note(name: str, spent: float) -> None:
        times.setdefault(name, []).append(spent)

    for repeat in range(repeats):
        note("ours, trained", seconds(lambda: fine_tune(
            model, tokenizer, rows, SETTINGS, max_length=length, precision="float32", seed=0)))  # fmt: skip
        note("Trainer", seconds(lambda: trainer_alone(model, tokenizer, rows, length)))
        note("ours, answered", seconds(lambda: generate(
            model, tokenizer, rows, max_length=length, new_tokens=new_tokens)))  # fmt: skip
        note("one length", seconds(lambda: plain(model, tokenizer, rows, length, new_tokens, 32)))
        note("row by row", seconds(lambda: plain(model, tokenizer, rows[:8], length, new_tokens, 1)) * count / 8)
        for n in lengths:
            ours, passes = curvature(model, n, max(1, 512 // n))
            note(f"curvature {n}", ours)
            note(f"passes {n}", passes)
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
    least = {name: min(values) for name, values in times.items()}
    return {
        "rows": count,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "weights": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": least,
        "trained_tokens_per_second": tokens * SETTINGS.epochs / least["ours, trained"],
        "answers_per_second": count / least["ours, answered"],
        "trained": least["ours, trained"] / least["Trainer"],
        "answered": {name: least[name] / least["ours, answered"] for name in ("one length", "row by row")},
        "curvature": {str(n): least[f"curvature {n}"] / least[f"passes {n}"] for n in lengths},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's folder, in place of SmolLM2's")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32, help="of an answer, at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.model or SmolLM2().folder(), arguments.rows, arguments.new_tokens, arguments.repeats)
    if arguments.json:
        json.dump(result, sys.stdout)
        print()
        return
    print(f"trained: {result['trained_tokens_per_second']:.0f} tokens/s, {result['trained']:.2f} of the Trainer's time")
    print(f"answered: {result['answers_per_second']:.1f} rows/s, of at most {result['new_tokens']} tokens")
    for name, ratio in result["answered"].items():
        print(f"  {name}: {ratio:.2f} times as long")
    for length, ratio in result["curvature"].items():
        print(f"curvature at {length} tokens: {ratio:.2f} of plain passes")


if __name__ == "__main__":
    main()
