"""Small classifiers, rows of chosen lengths, and how close is close enough."""

import torch
import transformers
from torch import nn

from defensekit.text import Row, batches, encode
from tests.conftest import FILLERS
from tests.models.architectures import architectures
from tests.small_models import ARCHITECTURES, make_tokenizer

Batch = dict[str, torch.Tensor]


def classifier(architecture: str, labels: int = 2) -> torch.nn.Module:
    """A model of which no part is idle: weights large enough for attention to look somewhere."""
    config = (ARCHITECTURES.get(architecture) or architectures()[architecture])()
    config.num_labels, config.pad_token_id = labels, 0
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
    return model


def rows(lengths: list[int], labels: int = 2) -> list[Row]:
    return [
        Row(i, " ".join(FILLERS[(i + j) % len(FILLERS)] for j in range(n)), i % labels) for i, n in enumerate(lengths)
    ]


def padded(made: list[Row], size: int = 64, extra: int = 0) -> list[Batch]:
    """Batches of rows; ``extra`` tokens of padding more than they need."""
    tokenizer = make_tokenizer()
    found = [dict(batch) for _, batch in batches(encode(tokenizer, made, 64), tokenizer, size)]
    pad = nn.functional.pad
    return [{k: v if k == "labels" else pad(v, (0, extra)) for k, v in batch.items()} for batch in found]


def close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rel: float = 1e-4) -> None:
    """Every tensor within ``rel`` of its norm; a key's bias shifts every attention score alike, so its gradient is 0
    but for rounding, far below anything else in the model."""
    assert got.keys() == expected.keys()
    floor = 1e-12 * max(float(tensor.norm()) for tensor in expected.values())
    for name, tensor in expected.items():
        assert float((got[name].double() - tensor).norm()) <= rel * float(tensor.norm()) + floor, name
