"""Rows with any number of labels: their loss, and its curvature, are those of plain torch, a row at a time."""

from typing import Any

import pytest
import torch

from defensekit.gradients import cross_entropy, mean_gradient, mean_squared_gradients
from defensekit.text import Row, batches, encode
from tests.conftest import make_sentences, slow_but
from tests.multi_label import make_model
from tests.small_models import ARCHITECTURES, make_tokenizer

ROWS = [
    Row(i, text, 0, indicator=(i % 2, i // 2 % 2, i // 4 % 2)) for i, (text, _) in enumerate(make_sentences(12, seed=3))
]


def by_hand(model: Any, row: Row) -> torch.Tensor:
    """The loss of a row, from its definition."""
    inputs = make_tokenizer()(row.text, return_tensors="pt")
    [logits] = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert row.indicator is not None
    each = [
        -(z.sigmoid() if applies else 1 - z.sigmoid()).log() for z, applies in zip(logits, row.indicator, strict=True)
    ]
    return torch.stack(each).mean()


def batch_of(rows: list[Row], size: int) -> list[tuple[list[int], dict[str, torch.Tensor]]]:
    tokenizer = make_tokenizer()
    return list(batches(encode(tokenizer, rows, 32), tokenizer, size))


@pytest.mark.parametrize("architecture", slow_but(ARCHITECTURES, "bert", "gpt2"))
def test_the_loss_is_the_mean_of_the_binary_ones_as_transformers_has_it(architecture: str) -> None:
    model = make_model(architecture)
    expected = torch.stack([by_hand(model, row) for row in ROWS])
    for indices, batch in batch_of(ROWS, 5):
        torch.testing.assert_close(cross_entropy(model, batch), expected[indices])
        model.config.problem_type = "multi_label_classification"
        torch.testing.assert_close(model(**batch).loss, expected[indices].mean())


def test_squared_gradients_are_those_of_plain_torch_row_by_row() -> None:
    model = make_model().double()
    weights = dict(model.named_parameters())
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for row in ROWS:
        slopes = torch.autograd.grad(by_hand(model, row), list(weights.values()), materialize_grads=True)
        for name, slope in zip(weights, slopes, strict=True):
            sums[name] += slope**2
            total[name] += slope
    means, _ = mean_squared_gradients(model, lambda: (b for _, b in batch_of(ROWS, 5)), len(ROWS), held=2**30)
    [gradient] = mean_gradient(model, [b for _, b in batch_of(ROWS, len(ROWS))])
    for name in weights:
        torch.testing.assert_close(means[name], sums[name] / len(ROWS))
        torch.testing.assert_close(gradient[name], (total[name] / len(ROWS)).float(), atol=1e-7, rtol=1e-4)
