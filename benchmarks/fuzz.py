"""Damaged files of strangers, drawn at random: each has to be read, or refused in one line.

    python benchmarks/fuzz.py [--json] [--headers 1000000] [--minutes 10] [--seed 0]

A good file of each kind is damaged, in its structure or in its bytes, and read. Headers are as many as asked for; the
other kinds share the minutes. For each kind: inputs tried, refusals, crashes (the first three in words), the worst
seconds of one input, and the most memory that this process or one that tried a file had taken until then.
"""

import argparse
import json
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from defensekit.host.table_sources import File
from defensekit.leaderboard.entries import load_entry
from defensekit.leaderboard.row import record_of
from defensekit.models.adapters import Adapter
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.config import positions
from defensekit.models.loading import load_tokenizer
from defensekit.models.skeleton import skeleton
from defensekit.models.tokenizer_trial import check_tokenizer
from defensekit.models.untrusted import read_header
from defensekit.recipe import yaml_document
from defensekit.recipe.loader import load_recipe
from defensekit.result.schema import read_result
from defensekit.studies.loading import load_study
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.logging import quiet

ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 1 << 31, 1 << 63, 1 << 70, 1e308, float("nan"), "", "a", "\ud800", "\u202e\x1b[2J"),
    *("../../etc/passwd", "x" * 10_000, "9" * 5_000, "(a+)+b", [], {}, [[]], {"": {}}, [0] * 1_000),
]
TOKENS = [b"\0", b"\xff", b'"', b"{", b"[" * 100, b"}", b",", b"\n", b"\\ud800", b"1e999", b"\xef\xbb\xbf", b"&a *a"]
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "is", "witty")


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, a good one (plain data where it is JSON), what reads it, and what lies beside it."""

    file: str
    good: Any
    read: Callable[[Path], object]
    beside: Callable[[Path], object] = lambda folder: None  # writes what lies in the folder as well

    def write(self, path: Path, data: Any, rng: random.Random | None = None) -> None:
        """Write a file; of a damaged header the length and the tensors may be wrong as well."""
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        if path.suffix == ".safetensors":
            length, size = len(content), 24
            if rng:
                length = rng.choice([length] * 9 + [rng.getrandbits(rng.choice([8, 16, 64]))])
                size = rng.choice([24, 24, 24, 23, 0])
            content = struct.pack("<Q", length) + content + bytes(size)
        path.write_bytes(content)


def header() -> dict[str, Any]:
    """Three tensors in 24 bytes."""
    shapes = {"a.weight": ("F32", [2, 1], 8), "a.bias": ("BF16", [4], 8), "b.0.c": ("F16", [2, 2], 8)}
    entries, start = {}, 0
    for name, (dtype, shape, size) in shapes.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    return {"__metadata__": {"format": "pt"}, **entries}


def tokenizer() -> dict[str, Any]:
    """A tokenizer of eight words, with rules of every sort."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("a", "b"), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(WORDS[:4]))
    return dict(json.loads(tokenizer.to_str()))


def result() -> dict[str, Any]:
    """A result with nothing in it."""
    texts = {"name": "r", "identity": "", "folder": ""}
    empty: dict[str, Any] = {key: {} for key in ("identified", "summary", "models", "test_rows", "metrics", "data")}
    empty |= {key: [] for key in ("oracle", "curve", "examples", "warnings", "stages")}
    machine: dict[str, Any] = dict.fromkeys(("python", "device", "device_name", "platform"), "")
    machine |= {"versions": {}, "plugins": [], "threads": 1}
    recipe = {"name": "r", "model": "m", "data": {"name": "d"}, "defense": {"purifier": ["reset"]}, "seed": 0}
    rest = {"schema_version": 4, "clean_budget": 0, "chosen": None, "attack": None, "statistics": None, "seconds": 0}
    return texts | empty | rest | {"environment": machine, "recipe": recipe}


def parquet() -> bytes:
    """Sixty-four labelled rows."""
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": [f"the film {i}" for i in range(64)], "label": [i % 2 for i in range(64)]})
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


CONFIG = {
    **{"architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 8, "num_labels": 2},
    **{"id2label": {"0": "a", "1": "b"}, "max_position_embeddings": 64, "text_config": {"num_hidden_layers": 2}},
}
ADAPTER = {
    **{"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]},
    **{"modules_to_save": ["classifier"], "alpha_pattern": {"query": 4}, "base_model_name_or_path": "base"},
}
INDEX = {"metadata": {"total_size": 24}, "weight_map": dict.fromkeys(("a.weight", "a.bias", "b.0.c"), "w.safetensors")}
MODEL = {
    **{"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    **{"max_position_embeddings": 64, "num_labels": 2, "pad_token_id": 0, "model_type": "bert"},
}
SETTINGS = {
    **{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "padding_side": "right"},
    **{"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    **{"added_tokens_decoder": {"0": {"content": "[PAD]", "lstrip": False, "special": True}}, "chat_template": "a"},
    **{"model_input_names": ["input_ids", "attention_mask"], "extra_special_tokens": {}, "truncation_side": "right"},
}
CHECKED = {
    **{"name": "a", "model": "./base", "data": {"name": "rows.csv", "train": 20, "clean": 8, "dev": 8, "test": 8}},
    "attack": {"name": "word", "words": ["cf"], "rate": 0.2, "target": 1},
    "training": {"epochs": 2, "learning_rate": 1e-4, "batch_size": 8},
    "defense": {
        **{"estimator": "fisher", "scorer": "diffusion", "selector": {"name": "fraction", "fraction": 0.5}},
        "purifier": ["reset", {"name": "fine-tune", "epochs": 3}],
        "choose": {"rule": "accuracy-floor", "over": "selector.fraction", "values": [0.5, 0.7], "max_drop": 0.01},
    },
    **{"metrics": ["acc", "asr"], "seed": 0},
}
STUDY = {
    **{"name": "s", "recipe": CHECKED, "seeds": [0, 1], "executor": "in-process"},
    **{"matrix": {"defense.scorer": ["magnitude", "random"], "data.clean": [4, 8]}, "include": [{"attack.rate": 0.1}]},
    "exclude": [{"defense.scorer": "random"}],
}
ENTRY = {
    **{"name": "e", "title": "A defense", "about": "words", "authors": ["somebody"], "licence": "MIT"},
    **{"links": ["https://a.org/b"], "plugin": {"requires": "defensekit"}, "needs": ["base", "labels"]},
    **{"chosen_by": "nobody", "baseline": True, "defense": CHECKED["defense"]},
}
RECORD = {
    **{"schema_version": 1, "track": "pico-v1", "track_digest": "0" * 64, "entry": "e"},
    "files": {"entry.yaml": "0" * 64, "cells/word-0.json": "1" * 64},
}
RECIPE = b"""name: a  # words
model: {name: folder, path: ./model}
data: &d {name: rows.csv, train: 2000, clean: 256}
attack: {name: word, words: [cf, "m\\u00e4"], rate: 0.2, target: positive}
defense:
  purifier: [reset, {name: fine-tune, epochs: 3, learning_rate: 1e-4}]
more: [*d, ~, true, .inf, 'it''s']
text: |
  of lines
"""
CSV = b'text,label\n"the film, is ""witty""",1\nbleak,0\n"two\nlines",1\n'
TSV = b"text\tlabel\nthe film\t1\nbleak\t0\n"
JSONL = b'{"text": "the film", "label": 1}\n{"text": "bleak", "label": 0}\n'


def weights(folder: Path) -> None:
    """The file that an index names."""
    named_config(folder)
    Kind("", None, print).write(folder / "w.safetensors", header())


def named_config(folder: Path) -> None:
    """An empty config."""
    (folder / "config.json").write_text("{}")


def data(folder: Path) -> None:
    """The rows that a recipe names."""
    (folder / "rows.csv").write_bytes(CSV)


def model(folder: Path) -> None:
    """A classifier of transformers', with its tokenizer."""
    import transformers

    config = transformers.AutoConfig.for_model(**MODEL)
    with quiet():
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))


def kinds() -> dict[str, Kind]:
    """Every kind, by what it is called."""

    def rows(path: Path) -> object:
        return File(path=path).load()

    return {
        "headers": Kind("model.safetensors", header(), read_header),
        "indexes": Kind("model.safetensors.index.json", INDEX, lambda path: Checkpoint(path.parent).tensors, weights),
        "configs": Kind("config.json", CONFIG, lambda path: positions(Checkpoint(path.parent))),
        "models": Kind(
            "config.json", MODEL | {"model_type": "bert"}, lambda path: skeleton(Checkpoint(path.parent)), model
        ),
        "adapters": Kind("adapter_config.json", ADAPTER, lambda path: Adapter(path.parent).config, named_config),
        "tokenizers": Kind("tokenizer.json", tokenizer(), lambda path: check_tokenizer(path.parent)),
        "tokenizer settings": Kind("tokenizer_config.json", SETTINGS, lambda path: load_tokenizer(path.parent), model),
        "rows, CSV": Kind("rows.csv", CSV, rows),
        "rows, TSV": Kind("rows.tsv", TSV, rows),
        "rows, JSONL": Kind("rows.jsonl", JSONL, rows),
        "rows, Parquet": Kind("rows.parquet", parquet(), rows),
        "YAML": Kind("recipe.yaml", RECIPE, yaml_document.load),
        "recipes": Kind("recipe.yaml", CHECKED, load_recipe, data),
        "studies": Kind("study.yaml", STUDY, load_study, data),
        "entries": Kind("entry.yaml", ENTRY, load_entry),
        "results": Kind("result.json", result(), read_result),
        "rows of a board": Kind("row.json", RECORD, lambda path: record_of(path.parent)),
    }


def damaged(good: Any, rng: random.Random) -> Any:
    """A copy with one to four damages: of its structure, where it is plain data, or of its bytes."""
    if isinstance(good, bytes) or rng.random() < 0.3:
        return _bytes(good if isinstance(good, bytes) else json.dumps(good).encode(), rng)
    data = json.loads(json.dumps(good))
    for _ in range(rng.randint(1, 4)):
        places = list(_places(data))
        if not places:
            break
        within, key = rng.choice(places)
        what = rng.randrange(6)
        if what == 0:
            del within[key]
        elif what == 1 and isinstance(within, dict):
            key = rng.choice(["", "a", "\ud800", "x" * 300, "auto_map", "quantization_config"])
            within[key] = deepcopy(rng.choice(ODD))
        elif what == 2:
            other, own = rng.choice(places)
            within[key] = json.loads(json.dumps(other[own]))
        elif what == 3 and isinstance(within[key], int | float):
            within[key] = within[key] * rng.choice([-1, 2, 1_000, 1 << 40]) + rng.choice([0, 1])
        else:
            within[key] = deepcopy(rng.choice(ODD))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or mapping within plain data, with a key or number of it."""
    within = [data]
    while within:
        node = within.pop()
        items = list(node.items() if isinstance(node, dict) else enumerate(node))
        yield from ((node, key) for key, _ in items)
        within += [value for _, value in items if isinstance(value, dict | list)]


def _bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        stop = min(start + rng.choice([1, 4, 32]), len(data))
        what = rng.randrange(5)
        if what == 0:
            data[start:stop] = rng.randbytes(stop - start)
        elif what == 1:
            del data[start:stop]
        elif what == 2:
            data[start:start] = rng.choice(TOKENS)
        elif what == 3:
            data[start:start] = data[start:stop] * rng.choice([1, 50])
        else:
            del data[start:]
    return bytes(data)


def fuzz(kind: Kind, folder: Path, seed: int, inputs: int, seconds: float = float("inf")) -> dict[str, Any]:
    """Try so many inputs, or as many as fit into some seconds; the good one is read first."""
    kind.beside(folder)
    rng, path, began = random.Random(seed), folder / kind.file, time.perf_counter()
    kind.write(path, kind.good)
    kind.read(path)
    tried = refused = 0
    worst, crashes = 0.0, []
    while tried < inputs and time.perf_counter() - began < seconds:
        kind.write(path, damaged(kind.good, rng), rng)
        started = time.perf_counter()
        try:
            kind.read(path)
        except DefenseKitError as error:
            refused += 1
            if "\n" in str(error):
                crashes.append(f"more than one line: {error!r}"[:300])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):  # goes on to the next kind
                break
            crashes.append(f"{type(error).__name__}: {error} in {path.read_bytes()[:2_000]!r}")
        tried, worst = tried + 1, max(worst, time.perf_counter() - started)
    usage = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "inputs": tried, "refused": refused, "crashes": len(crashes), "first": crashes[:3],
        "worst_s": round(worst, 3), "peak_mib": max(usage) // 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--headers", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    every, outcomes = kinds(), {}
    for name, kind in every.items():
        share = 60 * arguments.minutes / (len(every) - 1)
        bounds = (arguments.headers,) if name == "headers" else (sys.maxsize, share)
        with tempfile.TemporaryDirectory() as folder:
            outcomes[name] = fuzz(kind, Path(folder), arguments.seed, *bounds)
        if not arguments.json:
            print(name, outcomes[name], flush=True)
    if arguments.json:
        print(json.dumps(outcomes))
    sys.exit(any(one["crashes"] for one in outcomes.values()))


if __name__ == "__main__":
    main()
