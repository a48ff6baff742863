"""Broken estimators, scorers, selectors and weight steps, by the check that catches them."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, PrivateAttr

from defensekit.api import (
    Component,
    Estimate,
    Field,
)
from defensekit.testing.pico import pico
from tests.testing.good import MATRIX, Drift, Gradients, Share, Shrink, Zero


class Stubborn(Drift):
    """Reads YAML otherwise than it writes it."""

    rank: int = Field(3, description="written one higher than it is")

    def parameters(self) -> dict[str, Any]:
        return {"rank": self.rank + 1}


class Generous(Drift):
    """Takes any parameter."""

    model_config = ConfigDict(extra="ignore")


class Silent(Drift):
    """Doesn't say what a parameter is."""

    rank: int = 3


class Unhashable(Drift):
    """Can't be hashed."""

    def __hash__(self) -> int:
        return hash([1])  # type: ignore[call-overload]


class Lazybones(Drift):
    """Raises."""

    def score(self, t: Any) -> Any:
        raise ValueError("not today")


class Moody(Drift):
    """Draws from the clock."""

    def score(self, t: Any) -> Any:
        return t.drift.abs() * (1 + time.perf_counter_ns() % 1000)

    elementwise = False


class Vandal(Drift):
    """Writes into the model, where torch doesn't see it."""

    def score(self, t: Any) -> Any:
        found = t.drift.abs()
        t.suspect.numpy()[0] += 1
        return found

    elementwise = False


class Hooked(Gradients):
    """Leaves a hook behind."""

    def estimate(self, context: Any) -> Estimate:
        model = context.model("suspect")
        model.classifier.register_forward_hook(lambda *given: None)
        return super().estimate(context)


class Awake(Gradients):
    """Leaves a model in training mode."""

    def estimate(self, context: Any) -> Estimate:
        context.model("suspect").train()
        return super().estimate(context)


class Frozen(Shrink):
    """Freezes the embeddings, and leaves them so."""

    def train(self, model: Any, context: Any) -> None:
        model.get_input_embeddings().weight.requires_grad_(False)
        super().train(model, context)


class Seeder(Drift):
    """Seeds what is everybody's."""

    def score(self, t: Any) -> Any:
        torch.manual_seed(0)
        return super().score(t)


class Nomad(Drift):
    """Moves to another folder."""

    def score(self, t: Any) -> Any:
        os.chdir("/")
        return super().score(t)


class Forker(Drift):
    """Forks."""

    def score(self, t: Any) -> Any:
        if t.name == pico().pair.scope[0]:
            child = multiprocessing.get_context("fork").Process(target=int)
            child.start()
            child.join()
        return super().score(t)


class Chatty(Drift):
    """Prints."""

    def score(self, t: Any) -> Any:
        print("scoring", t.name)
        return super().score(t)


class Hoarder(Drift):
    """Keeps the last drift."""

    _kept: Any = PrivateAttr(None)

    def score(self, t: Any) -> Any:
        self._kept = t.drift
        return super().score(t)


class Snoop(Shrink):
    """Looks for triggered rows."""

    def train(self, model: Any, context: Any) -> None:
        for path in Path("workspace").rglob("rows.jsonl"):
            path.read_text()
        super().train(model, context)


class Misshapen(Gradients):
    """Gives vectors for matrices."""

    def end(self, mean: Any) -> Any:
        return mean.flatten()


class Negative(Gradients):
    """Gives a negative curvature."""

    def end(self, mean: Any) -> Any:
        return -mean


class Batchwise(Gradients):
    """Squares the gradient of a batch."""

    def estimate(self, context: Any) -> Estimate:
        model = context.model("suspect")
        weight = model.get_parameter(MATRIX)
        total = torch.zeros_like(weight)
        for places, batch in context.batches(model):
            total += torch.autograd.grad(model(**batch).loss * len(places), weight)[0] ** 2
        return Estimate({"curvature": {MATRIX: total}})


class Favourite(Gradients):
    """Weighs the first row more."""

    def estimate(self, context: Any) -> Estimate:
        found = super().estimate(context).statistics["curvature"]
        return Estimate({"curvature": {name: total * (1 + context.rows[0].id) for name, total in found.items()}})


class Sloppy(Gradients):
    """Is a tenth too large."""

    def end(self, mean: Any) -> Any:
        return mean * 1.1


class Infinite(Drift):
    """Divides by what may be 0."""

    needs = frozenset({"curvature"})
    elementwise = False

    def score(self, t: Any) -> Any:
        return t.drift.abs() / t["curvature"]


class Upside(Drift):
    """Scores what is least suspicious highest."""

    def score(self, t: Any) -> Any:
        return -t.drift.abs()


class Relative(Drift):
    """Says elementwise, and divides by the tensor's largest."""

    def score(self, t: Any) -> Any:
        return t.drift.abs() / (t.drift.abs().max() + 1e-9)


class Greedy(Share):
    """Takes a dimension that never moved."""

    def select(self, scores: Any) -> Any:
        found = super().select(scores)
        if len(found) > 1:
            name = min(name for name in found if not scores[name].eligible.all())
            found[name] |= ~scores[name].eligible
        return found


class Rounder(Share):
    """Rounds up."""

    def count(self, eligible: int) -> int:
        return min(eligible, int(self.fraction * eligible) + 1) if self.fraction else 0


class Lowest(Share):
    """Takes the lowest."""

    def of(self, scored: Any) -> Any:
        return super().of(type(scored)(-scored.score, scored.eligible, scored.layer))


class Denier(Share):
    """Says that it takes nothing, and takes something."""

    def takes_nothing(self) -> bool:
        return True


class Leaky(Zero):
    """Touches what is not selected."""

    def apply(self, t: Any, weight: Any, selection: Any) -> Any:
        return super().apply(t, weight, selection) * (1.01 if bool(selection.any()) else 1)


class Widening(Zero):
    """Turns everything into float32 where something is selected."""

    def apply(self, t: Any, weight: Any, selection: Any) -> Any:
        return super().apply(t, weight, selection).float() if bool(selection.any()) else weight


class Eager(Zero):
    """Does something where nothing is selected."""

    def apply(self, t: Any, weight: Any, selection: Any) -> Any:
        return super().apply(t, weight, selection) if bool(selection.any()) else torch.zeros_like(weight)


class Whole(Zero):
    """Says elementwise, and divides by the norm of all that it sees."""

    elementwise: ClassVar[bool] = True

    def apply(self, t: Any, weight: Any, selection: Any) -> Any:
        shrunk = (weight.float() / (1 + weight.float().norm())).to(weight.dtype)
        return torch.where(selection.bool(), shrunk, weight)


class Cabinet(Drift):
    """Keeps a tensor in a drawer of its class."""

    kept: ClassVar[dict[str, list[Any]]] = {}

    def score(self, t: Any) -> Any:
        self.kept.setdefault("last", []).append(t.drift)
        return super().score(t)


class Square(Drift):
    """Divides by what may be very small, twice."""

    needs: ClassVar[frozenset[str]] = frozenset({"curvature"})

    def score(self, t: Any) -> Any:
        h = t.statistics["curvature"]
        return torch.where(h > 0, t.drift.abs() / h.clamp(min=1e-38) ** 2, 0.0)


BROKEN: dict[type[Component], tuple[str, str]] = {
    Stubborn: ("survives-yaml", "expected Stubborn(rank=3) again, got Stubborn(rank=4)"),
    Generous: ("refuses-unknown-parameters", "expected `no_such_parameter: 1` to be refused"),
    Silent: ("describes-itself", "expected a description of the parameter 'rank'"),
    Unhashable: ("hashes-and-pickles", "unhashable type: 'list'"),
    Lazybones: ("works", "ValueError: not today (broken_weights.py:"),
    Moody: ("same-twice", "expected the same twice; its results differ in"),
    Vandal: ("leaves-what-it-is-handed", "expected nothing to change, got"),
    Hooked: ("leaves-what-it-is-handed", "classifier mode and hooks: training=False, 0 hooks before"),
    Awake: ("leaves-what-it-is-handed", "training=True, 0 hooks after"),
    Frozen: ("leaves-what-it-is-handed", "requires_grad=False, no gradient held after"),
    Seeder: ("leaves-random-states", "torch's random changed"),
    Nomad: ("leaves-the-process", "the working folder"),
    Forker: ("leaves-the-process", "expected no fork, got"),
    Chatty: ("prints-nothing", "got 'scoring embeddings"),
    Hoarder: ("holds-no-tensor", "got ['_kept']"),
    Snoop: ("reads-no-workspace", "expected no file of the working folder to be opened"),
    Misshapen: ("gives-what-it-provides", "has another shape than the weight"),
    Negative: ("gives-what-it-provides", "expected a curvature of at least 0, got -"),
    Batchwise: ("ignores-batch-size", "with at most 1 rows in a batch"),
    Favourite: ("ignores-order", "of the rows reversed"),
    Sloppy: ("agrees-with-its-reference", "is off by 0.1 of its norm"),
    Infinite: ("scores-are-finite-and-in-shape", "gave NaN or infinity for"),
    Upside: ("higher-is-taken-first", "expected {'drift': -0.2} to score above {'drift': 0.1}, got -0.2 and -0.1"),
    Relative: ("elementwise-is-meant", "expected the same scores for dimensions"),
    Greedy: ("takes-what-is-eligible-alone", "that are not eligible"),
    Rounder: ("takes-exactly-its-fraction", "eligible dimensions at fraction=0.013, got"),
    Lowest: ("takes-the-highest", "expected the highest scores, got one of"),
    Denier: ("takes-nothing-as-it-says", "expected nothing, since takes_nothing() is true, got"),
    Leaky: ("leaves-unselected-weights", "unselected weights of"),
    Widening: ("keeps-dtype-and-shape", "torch.bfloat16 for"),
    Whole: ("elementwise-is-meant", "to be the same alone as within the whole tensor"),
    Cabinet: ("holds-no-tensor", "got ['kept']"),
    Square: ("scores-are-finite-and-in-shape", "gave NaN or infinity for"),
    Eager: ("does-nothing-at-fraction-0", "unchanged with nothing selected (torch.bool), and it changed"),
}
