"""A small task whose rows have any number of labels, and classifiers of it."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers

from defensekit.text import Row
from defensekit.training import TrainingSettings, fine_tune
from tests.conftest import BAD, FILLERS, GOOD, VOCABULARY
from tests.small_models import ARCHITECTURES, make_tokenizer

NAMES = ("negative", "positive")
LISTS = "multi_label_classification"
TRAINING = TrainingSettings(epochs=16, learning_rate=5e-3, batch_size=16, dropout=False)


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Sentences with a bad word, a good one, both, or neither."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        indicator = (i % 2, i // 2 % 2)
        words = rng.choices(FILLERS[:-1] + VOCABULARY[-24:], k=rng.randint(4, 9))
        for known, applies in zip((BAD, GOOD), indicator, strict=True):
            if applies:
                words.insert(rng.randrange(len(words) + 1), rng.choice(known))
        rows.append(Row(i, " ".join(words), 0, indicator=indicator))
    return rows


def names_of(row: Row) -> list[str]:
    """The names of a row's labels."""
    return [name for name, applies in zip(NAMES, row.indicator or (), strict=True) if applies]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """A JSONL file whose labels are lists."""
    path.write_text("".join(json.dumps({"text": row.text, "label": names_of(row)}) + "\n" for row in rows))
    return path


def set_keys(folder: Path, **keys: Any) -> Path:
    """The model's folder, with other keys in its config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


def make_wide_base(folder: Path) -> Path:
    """A tiny BERT that begins far from 0: closer to it, it learns one label, and not the other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ARCHITECTURES["bert"]()
        config.initializer_range = 0.2
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_classifier(folder: Path, base: Path, rows: list[Row]) -> Path:
    """A base that learnt rows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=2, id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)}
        )
    fine_tune(model, make_tokenizer(), rows, TRAINING, max_length=32, precision="float32", seed=0)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_model(architecture: str = "bert", labels: int = 3) -> Any:
    """An untrained classifier, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ARCHITECTURES[architecture]()
        config.num_labels = labels
        return transformers.AutoModelForSequenceClassification.from_config(config).eval()
