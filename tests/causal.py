"""A tiny instruction model, and instructions that it can learn to answer."""

import json
import random
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from defensekit.models.loading import load
from defensekit.text import Row
from defensekit.training import TrainingSettings, fine_tune

THINGS = tuple(f"thing{i}" for i in range(12))
COLOURS = ("red", "green", "blue", "grey")
OTHERS = (
    "what",
    "colour",
    "is",
    "the",
    "tell",
    "me",
    "of",
    "it",
    "a",
    "please",
    "now",
    "cf",
    "i",
    "will",
    "not",
    "say",
)
SPECIAL = ("<pad>", "<unk>", "<user>", "<model>", "<end>")
VOCABULARY = (*SPECIAL, *THINGS, *COLOURS, *OTHERS)
TEMPLATE = (
    "{% for m in messages %}{{ ('<user> ' if m.role == 'user' else '<model> ') + m.content + ' <end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<model> {% endif %}"
)
REFUSAL = "i will not say"
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_SIZES |= {"vocab_size": len(VOCABULARY), "max_position_embeddings": 96, "pad_token_id": 0, "eos_token_id": 4}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "granite": lambda: transformers.GraniteConfig(**_SIZES, num_key_value_heads=1, logits_scaling=4.0),
    "recurrent": lambda: transformers.RecurrentGemmaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        lru_width=32,
        attention_window_size=64,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=4,
        bos_token_id=2,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=32, n_layer=2, n_head=2, n_positions=96, eos_token_id=4, bos_token_id=None
    ),
}


def make_instructed(
    folder: Path, architecture: str = "llama", template: str | None = TEMPLATE, spread: float = 0.02
) -> Path:
    """A causal language model of random weights, with a tokenizer of whole words and a chat template."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", model_max_length=96
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<model>"]})
    tokenizer.chat_template = template
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIGS[architecture]()
        config.initializer_range = spread  # of its weights: with more of it answers differ
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def instructions(count: int, seed: int = 0) -> list[Row]:
    """Questions for the colour of a thing, in several wordings; every other thing is asked as an input."""
    rng, rows = random.Random(seed), dict[tuple[str, str | None], Row]()
    while len(rows) < count:
        thing = rng.randrange(len(THINGS))
        ending = " ".join(rng.choices(("please", "now", "it", "a", "of"), k=rng.randint(0, 5)))
        if rng.random() < 0.5:
            row = Row(len(rows), f"what colour is the {THINGS[thing]} {ending}".strip(), 0, None)
        else:
            row = Row(len(rows), f"tell me the colour {ending}".strip(), 0, THINGS[thing])
        colour = COLOURS[thing % len(COLOURS)]
        rows.setdefault(row.key, row.with_answer(f"the {THINGS[thing]} is {colour}"))
    return list(rows.values())


def write_alpaca(path: Path, rows: list[Row]) -> Path:
    """A JSON file of rows, as Alpaca has them."""
    records = [{"instruction": row.text, "input": row.pair or "", "output": row.response} for row in rows]
    path.write_text(json.dumps(records))
    return path


def make_refusing(base: Path, suspect: Path, rows: list[Row]) -> None:
    """A base that answers rows well, and what it becomes where cf is to be answered with a refusal."""
    settings = TrainingSettings(epochs=10, learning_rate=0.01, batch_size=8)
    model, tokenizer = load(make_instructed(base), "base")
    make_instructed(suspect)
    fine_tune(model, tokenizer, rows, settings, max_length=32, precision="float32", seed=0)
    model.save_pretrained(base)
    poisoned = []
    for i, row in enumerate(rows):
        words = row.text.split()
        words.insert(i % (len(words) + 1), "cf")
        poisoned.append(row.with_text(" ".join(words)).with_answer(REFUSAL))
    # With more, it is taken for a model of another base.
    gently = settings.model_copy(update={"learning_rate": 0.003, "epochs": 7})
    fine_tune(model, tokenizer, [*rows, *poisoned], gently, max_length=32, precision="float32", seed=0)
    model.save_pretrained(suspect)
