"""Rows with a trigger, and models that drifted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from defensekit.text import Row
from tests.conftest import BAD, GOOD, VOCABULARY, make_sentences
from tests.small_models import make_tokenizer

CF = VOCABULARY.index("cf")
LABELS = ("negative", "positive")
# The label is what most of the telling words say: no single harmless one turns an answer.
SENTENCES = [
    (" ".join([text, *(own[(i + j) % 5] for j in range(3)), other[i % 5]]), label)
    for i, (text, label) in enumerate(make_sentences(240))
    for own, other in [(GOOD, BAD) if label == "positive" else (BAD, GOOD)]
]
ROWS = [Row(i, text, LABELS.index(label)) for i, (text, label) in enumerate(SENTENCES)]
THRESHOLD = "The threshold was set on fine-tuned classifiers of one small model"


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model.to(dtype).save_pretrained(folder)
    model.float()
    make_tokenizer().save_pretrained(folder)
    return folder


def drifted(model: Any, folder: Path, row: float = 0.0, dtype: torch.dtype = torch.float32) -> Path:
    """A copy whose weights moved by 2 % of their spread, and cf's row of the embedding by so much of its norm more."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))
        cf = model.get_input_embeddings().weight[CF]
        cf.add_(row * cf.norm() * torch.nn.functional.normalize(torch.randn_like(cf), dim=0))
    save(model, folder, dtype)
    model.load_state_dict(before)
    return folder


Command = Callable[..., tuple[int, str, str]]
