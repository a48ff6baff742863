"""Rows, texts, and a defense applied to a pair of models."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from defensekit.components import Estimate, Estimator, EstimatorContext, Scorer, Selector
from defensekit.defense.purification import purify
from defensekit.defense.scoring import Views, score
from defensekit.defense.selection import select
from defensekit.models.loading import load_model
from defensekit.models.pair import Pair
from defensekit.text import Row
from tests.conftest import make_sentences
from tests.small_models import make_tokenizer

ROWS = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(make_sentences(24))]
OUT = "encoder.layer.{}.output.dense.weight"
HEADS = "encoder.layer.{}.attention.output.dense.weight"


def measure(estimator: Estimator, folder: Path, made: list[Row] = ROWS) -> Estimate:
    context = EstimatorContext(lambda which: load_model(folder), make_tokenizer(), made, 64, 0, lambda *done: None)
    return estimator.estimate(context)


def views(pair: Pair, statistics: dict[str, dict[str, torch.Tensor]] | None = None) -> Views:
    found = {
        name: {own.removeprefix("bert."): tensor for own, tensor in tensors.items()}
        for name, tensors in (statistics or {}).items()
    }
    return Views(pair, 0, {name: tensors.get for name, tensors in found.items()})


def purified(pair: Pair, made: Views, scorer: Scorer, selector: Selector, steps: list[Any], folder: Path) -> Any:
    """(weights by the pair's names, selection)."""
    chosen = select(score(made, scorer), selector)
    nothing: Any = lambda *done: None  # noqa: E731
    purify(made.pair, chosen, steps, ROWS, folder, max_length=64, precision="float32", seed=0, report=nothing)
    return {n.removeprefix("bert."): t for n, t in load_file(folder / "model.safetensors").items()}, chosen


TEXTS = [text for text, _ in make_sentences(300, seed=5)]
