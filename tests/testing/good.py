"""Components that pass the conformance kit: every broken one is a variation of one of them."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from defensekit.api import (
    Attack,
    Choice,
    Dataset,
    DatasetSource,
    Detector,
    Estimate,
    Estimator,
    Field,
    Filter,
    Measured,
    Metric,
    ModelSource,
    ModelStep,
    Observer,
    Row,
    Rule,
    Sanitizer,
    Scorer,
    Selector,
    Trial,
    WeightStep,
)
from defensekit.pipeline.executors import InProcess
from defensekit.testing import fisher_by_loop
from defensekit.testing.pico import pico, sentences


class Drift(Scorer):
    """|delta|."""

    elementwise = True

    def score(self, t: Any) -> Any:
        return t.drift.abs()


class Share(Selector):
    """The highest scores, a share of the eligible dimensions of each tensor."""

    fraction: float = Field(0.3, ge=0, le=1, description="the share")

    def takes_nothing(self) -> bool:
        return self.fraction == 0

    def count(self, eligible: int) -> int:
        return round(self.fraction * eligible)

    def select(self, scores: Any) -> Any:
        return {name: self.of(scored) for name, scored in scores.items()}

    def of(self, scored: Any) -> Any:
        ranked = scored.score.masked_fill(~scored.eligible, -torch.inf).flatten().argsort(descending=True)
        chosen = torch.zeros(scored.score.numel(), dtype=torch.bool)
        chosen[ranked[: self.count(int(scored.eligible.sum()))]] = True
        return chosen.view(scored.score.shape)


MATRIX = "albert.pooler.weight"


def by_loop(model: Any, samples: Any) -> dict[str, dict[str, torch.Tensor]]:
    return {"curvature": {MATRIX: fisher_by_loop(model, samples)["curvature"][MATRIX]}}


class Gradients(Estimator):
    """The mean of squared per-sample gradients, of one matrix."""

    provides = frozenset({"curvature"})

    def estimate(self, context: Any) -> Estimate:
        from defensekit.gradients import cross_entropy

        model = context.model("suspect")
        weight = model.get_parameter(MATRIX)
        total = torch.zeros_like(weight)
        for _, batch in context.batches(model):
            for loss in cross_entropy(model, batch):
                total += torch.autograd.grad(loss, weight, retain_graph=True)[0] ** 2
        return Estimate({"curvature": {MATRIX: self.end(total / len(context.rows))}})

    def end(self, mean: Any) -> Any:
        return mean


class Zero(WeightStep):
    """Set what is selected to 0."""

    def apply(self, t: Any, weight: Any, selection: Any) -> Any:
        return torch.where(selection.bool(), torch.zeros_like(weight), weight)


class Shrink(ModelStep):
    """Make the head smaller, by a number drawn from the seed."""

    def train(self, model: Any, context: Any) -> None:
        with torch.no_grad():
            model.classifier.weight.mul_(random.Random(context.seed).uniform(0.5, 1))


class Distil(Shrink):
    """Asks for hidden states, which leaves hooks of transformers' own in the model."""

    def train(self, model: Any, context: Any) -> None:
        assert len(model(torch.tensor([[2, 9, 3]]), output_hidden_states=True).hidden_states) == 3
        super().train(model, context)


class Mark(Attack):
    """A word in front, and the label 1."""

    rate: float = Field(0.2, gt=0, le=1, description="the share of rows")

    def aim(self) -> Any:
        return 1

    def poison(self, rows: Any, context: Any) -> list[Row]:
        chosen = set(context.rng.sample(range(len(rows)), round(self.rate * len(rows))))
        return [self.poisoned(row) if i in chosen else row for i, row in enumerate(rows)]

    def poisoned(self, row: Row) -> Row:
        return row.with_text(f"cf {row.text}").with_label(1)

    def trigger(self, rows: Any, context: Any) -> list[Row]:
        return [row.with_text(f"cf {row.text}") for row in rows]


class Without(Sanitizer):
    """Takes the rare words out, and what is left is said of every text."""

    late = frozenset({"least"})

    least: int = Field(1, ge=1, description="words that stay")

    def inspect(self, texts: Sequence[str], context: Any) -> Sequence[Any]:
        return [[word for word in text.split() if word != "cf"] for text in texts]

    def sanitize(self, texts: Sequence[str], found: Sequence[Any], context: Any) -> Sequence[str]:
        return [" ".join(kept) if len(kept) >= self.least else text for text, kept in zip(texts, found, strict=True)]


class Long(Filter):
    """Long rows first."""

    threshold: float = Field(8.0, description="rows with more words than this are taken")

    def score(self, context: Any) -> Any:
        return np.array([len(row.text.split()) for row in context.rows])


class Unsure(Detector):
    """How far the head's answer is from that of the clean rows."""

    def fit(self, context: Any) -> Any:
        return {"mean": context.logits(context.model("suspect"), context.rows).mean(0)}

    def score(self, rows: Sequence[Row], fitted: Any, context: Any) -> Any:
        return (context.logits(context.model("suspect"), rows) - fitted["mean"]).norm(dim=1)


class First(Rule):
    """Every value in turn, then 0; takes the one seen first."""

    def propose(self, seen: Sequence[Trial]) -> float | None:
        asked = tuple(dict.fromkeys((*self.values, 0.0)))
        return asked[len(seen)] if len(seen) < len(asked) else None

    def choose(self, seen: Sequence[Trial], suspect: Trial) -> Choice:
        return Choice(seen[0].value, "it came first")


class Sentences(DatasetSource):
    """Rows made on the spot."""

    def load(self) -> Dataset:
        return Dataset(("no", "yes"), sentences(20))

    def contents(self, say: Callable[[str], None]) -> str:
        return "20 sentences"


class PicoModel(ModelSource):
    """The kit's own model."""

    def folder(self) -> Path:
        return pico().suspect


class Right(Metric):
    """The share of right answers."""

    on = "plain"

    def measure(self, predictions: Any) -> Measured:
        return self.of(float((predictions.answers() == predictions.labels).mean()), len(predictions.labels))

    def of(self, share: float, rows: int) -> Measured:
        return Measured(value=share, low=0, high=1, rows=rows)


class Deaf(Observer):
    """Hears nothing."""


GOOD = (
    Drift,
    Share,
    Gradients,
    Zero,
    Shrink,
    Distil,
    Mark,
    Without,
    Long,
    Unsure,
    First,
    Sentences,
    PicoModel,
    Right,
    Deaf,
    InProcess,
)
