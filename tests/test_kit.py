"""Each check of the conformance kit, by a plugin that breaks it and nothing else."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ConfigDict, PrivateAttr

from defensekit.api import (
    Attack,
    Choice,
    Component,
    Dataset,
    DatasetSource,
    Estimate,
    Estimator,
    Executor,
    Field,
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
    UsageError,
    WeightStep,
    Workers,
)
from defensekit.pipeline.executors import InProcess
from defensekit.testing import Report, check_plugin, fisher_by_loop
from defensekit.testing.kit import CHECKS
from defensekit.testing.pico import pico, sentences

pytest_plugins = ["pytester"]

# -- good ones, of which every broken one is a variation ---------------------------------------------------------------


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
        return Row(row.id, f"cf {row.text}", 1)

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
    First,
    Sentences,
    PicoModel,
    Right,
    Deaf,
    InProcess,
)


# -- broken ones, by the check that catches them -----------------------------------------------------------------------


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
    """Has a parameter that can't be hashed."""

    ranks: list[int] = Field([1], description="a list")


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


class Untying(Shrink):
    """Gives every layer weights of its own."""

    def train(self, model: Any, context: Any) -> None:
        import copy

        layers = model.albert.encoder.albert_layer_groups[0].albert_layers
        layers.append(copy.deepcopy(layers[0]))


class Stranger(Mark):
    """Gives rows under new ids."""

    def poisoned(self, row: Row) -> Row:
        return Row(row.id + 1000, f"cf {row.text}", 1)


class Excessive(Mark):
    """Poisons one row more."""

    def poison(self, rows: Any, context: Any) -> list[Row]:
        made = super().poison(rows, context)
        clean = next(i for i, row in enumerate(rows) if made[i] == row)
        made[clean] = self.poisoned(rows[clean])
        return made


class Relabelling(Mark):
    """Relabels test rows."""

    def trigger(self, rows: Any, context: Any) -> list[Row]:
        return [self.poisoned(row) for row in rows]


class Faint(Mark):
    """Leaves a test row as it is."""

    def trigger(self, rows: Any, context: Any) -> list[Row]:
        return [rows[0], *super().trigger(rows[1:], context)]


class Aimless(Mark):
    """Aims at a label that the data may not have by that name."""

    def aim(self) -> Any:
        return 1.0

    def poison(self, rows: Any, context: Any) -> list[Row]:
        return super().poison(rows, context)


class Headless(Mark):
    """Trains, and changes the shape of the head."""

    trains_from = "clean"

    def train(self, model: Any, context: Any) -> None:
        model.classifier = torch.nn.Linear(16, 3)


class Thinning(Without):
    """Leaves out texts that it does not like."""

    def sanitize(self, texts: Sequence[str], found: Sequence[Any], context: Any) -> Sequence[str]:
        return [text for text in super().sanitize(texts, found, context) if text.strip()]


class Emptying(Without):
    """Takes every word of a short text."""

    def sanitize(self, texts: Sequence[str], found: Sequence[Any], context: Any) -> Sequence[str]:
        return [" ".join(kept) if len(kept) > 1 else "" for kept in found]


class Comparing(Without):
    """Takes out what most of the other texts have."""

    def inspect(self, texts: Sequence[str], context: Any) -> Sequence[Any]:
        common = {word for word in ["film", "the", "is", "a"] if 2 * sum(word in text for text in texts) > len(texts)}
        return [[word for word in text.split() if word not in common] or ["film"] for text in texts]


class Settled(Without):
    """Remembers sets."""

    def inspect(self, texts: Sequence[str], context: Any) -> Sequence[Any]:
        return [tuple(kept) for kept in super().inspect(texts, context)]


class Needy(Without):
    """Has a late parameter that is not there."""

    late = frozenset({"most"})


class Endless(First):
    """Never ends."""

    def propose(self, seen: Sequence[Trial]) -> float | None:
        return super().propose(seen) if len(seen) < 3 else self.values[0]


class Curious(First):
    """Tries a value that nobody asked for."""

    def propose(self, seen: Sequence[Trial]) -> float | None:
        return 0.9 if len(seen) == 3 else super().propose(seen)


class Inventive(First):
    """Takes a value that it did not try."""

    def choose(self, seen: Sequence[Trial], suspect: Trial) -> Choice:
        return Choice(0.123, "it looked better")


class Twins(Sentences):
    """Has an id twice."""

    def load(self) -> Dataset:
        return Dataset(("no", "yes"), [*sentences(20), Row(0, "a lovely film", 1)])


class Unlabelled(Sentences):
    """Has a label without a name."""

    def load(self) -> Dataset:
        return Dataset(("no", "yes"), [*sentences(20), Row(99, "a lovely film", 2)])


class Undigested(Sentences):
    """Has an empty digest."""

    def contents(self, say: Callable[[str], None]) -> str:
        return ""


class Absent(PicoModel):
    """Has no model."""

    def folder(self) -> Path:
        return Path("/nowhere")


class Vague(Right):
    """Doesn't say what rows it is measured on."""

    on: ClassVar[Any] = "clean"


class Percent(Right):
    """Counts to a hundred."""

    def of(self, share: float, rows: int) -> Measured:
        return Measured(value=100 * share, low=0, high=100, rows=rows)


class Miscounting(Right):
    """Counts rows that it was not given."""

    def of(self, share: float, rows: int) -> Measured:
        return Measured(value=share, low=0, high=1, rows=rows + 1)


class Idle(Workers):
    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        report(1, 1)


class Lazy(Executor):
    """Executes nothing."""

    def open(self) -> AbstractContextManager[Workers]:
        return nullcontext(Idle())


BROKEN: dict[type[Component], tuple[str, str]] = {
    Stubborn: ("survives-yaml", "expected Stubborn(rank=3) again, got Stubborn(rank=4)"),
    Generous: ("refuses-unknown-parameters", "expected `no_such_parameter: 1` to be refused"),
    Silent: ("describes-itself", "expected a description of the parameter 'rank'"),
    Unhashable: ("hashes-and-pickles", "unhashable type: 'list'"),
    Lazybones: ("works", "ValueError: not today (test_kit.py:"),
    Moody: ("same-twice", "expected the same twice; what it made differs in"),
    Vandal: ("leaves-what-it-is-handed", "expected nothing to change, got"),
    Hooked: ("leaves-what-it-is-handed", "classifier mode and hooks: training=False, 0 hooks before"),
    Awake: ("leaves-what-it-is-handed", "training=True, 0 hooks after"),
    Frozen: ("leaves-what-it-is-handed", "requires_grad=False, no gradient held after"),
    Seeder: ("leaves-random-states", "torch's random moved on"),
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
    Relative: ("elementwise-is-meant", "expected the scores of the whole for dimensions"),
    Greedy: ("takes-what-is-eligible-alone", "that are not eligible"),
    Rounder: ("takes-exactly-its-fraction", "eligible dimensions at fraction=0.013, got"),
    Lowest: ("takes-the-highest", "expected the highest scores, got one of"),
    Denier: ("takes-nothing-as-it-says", "expected nothing, since takes_nothing() is true, got"),
    Leaky: ("leaves-unselected-weights", "unselected weights of"),
    Widening: ("keeps-dtype-and-shape", "torch.bfloat16 for"),
    Eager: ("does-nothing-at-fraction-0", "unchanged with nothing selected (torch.bool), and it changed"),
    Untying: ("keeps-names-and-tying", "changed the names or shapes of the model's tensors"),
    Stranger: ("poisons-rows-it-was-given", "expected an id of the rows given, or below 0, got Row(id=10"),
    Excessive: ("poisons-exactly-its-rate", "expected 40 of 200 rows poisoned at rate 0.2, got 41"),
    Relabelling: ("triggers-without-relabelling", "expected the true label 0 kept, got Row("),
    Faint: ("triggers-without-relabelling", "expected a trigger in"),
    Headless: ("trains-in-place", "classifier.bias: expected [2], got [3]"),
    Thinning: ("gives-a-text-for-each", "texts, got"),
    Emptying: ("gives-a-text-for-each", "expected words to be left of 'film', got none"),
    Comparing: ("looks-at-one-text-at-a-time", "asked alone, got"),
    Settled: ("finds-plain-data", "expected the same after it was written as JSON"),
    Needy: ("late-parameters-have-defaults", "expected a parameter 'most' with a default"),
    Endless: ("ends", "expected an end, got more than 100 proposals"),
    Curious: ("proposes-what-was-asked", "got [0.9] with"),
    Inventive: ("takes-what-it-saw", "expected a value out of [0.0, 0.25, 0.5], got 0.123"),
    Twins: ("numbers-its-rows-once", "expected an id of its own for every row"),
    Unlabelled: ("labels-its-rows", "expected a label from 0 to 1, got 2 in train"),
    Undigested: ("digests-its-contents", "expected a digest as text, got ''"),
    Absent: ("gives-a-readable-model", "expected a folder, got"),
    Vague: ("says-what-it-is-about", "expected on = 'plain' or 'triggered', got 'clean'"),
    Percent: ("measures-a-share", "expected numbers in [0, 1]"),
    Miscounting: ("counts-its-rows", "expected 1 to 60 rows, got 61"),
    Lazy: ("leaves-the-stage-in-the-store", "in the store, got nothing"),
}


def report(component: type[Component], **more: Any) -> Report:
    """What the kit says of one of these, with all that their author could have told it."""
    if issubclass(component, Scorer):
        more = {"order": [{"drift": 0.1}, {"drift": -0.2}], **more} if not component.needs else more
    if component in (Gradients, Sloppy):
        more["reference"] = by_loop
    return check_plugin(component, **more)


@pytest.mark.parametrize("component", GOOD, ids=lambda component: component.__name__)
def test_a_good_one_passes(component: type[Component]) -> None:
    assert report(component).passed, str(report(component))


@pytest.mark.parametrize("component", BROKEN, ids=lambda component: component.__name__)
def test_a_broken_one_is_caught_and_for_that_alone(component: type[Component]) -> None:
    check, reason = BROKEN[component]
    found = report(component)
    assert [failed.check for failed in found.of("failed")] == [check], str(found)
    assert reason in found.of("failed")[0].reason


def test_every_check_is_broken_by_somebody() -> None:
    broken = {check for check, _ in BROKEN.values()} | {"lists-without-torch", "aims-at-a-label"}
    assert {check.name for check in CHECKS} == broken


HEAVY = """
import torch
from defensekit.api import hookimpl, scorer

@scorer()
def mine(t):
    "|delta|."
    return t.drift.abs()

@hookimpl
def defensekit_scorers():
    return {"mine": mine}
"""


def test_a_plugin_that_imports_torch_to_be_listed(tmp_path: Path) -> None:
    from defensekit.host.discovery import load_plugins

    (tmp_path / "mine.py").write_text(HEAVY)
    [failed] = check_plugin(load_plugins([tmp_path / "mine.py"]).find("scorer", "mine")).of("failed")
    assert failed.check == "lists-without-torch"
    assert "expected no heavy import, got torch" in failed.reason


# -- what the caller says ----------------------------------------------------------------------------------------------


def test_what_is_expected_to_fail_and_does() -> None:
    found = report(Upside, expected={"higher-is-taken-first": "it is there to be compared with"})
    assert found.passed
    [expected] = found.of("expected")
    assert expected.reason == "it is there to be compared with"
    assert "1 expected" in found.summary


def test_what_is_expected_to_fail_and_passes_is_a_failure() -> None:
    [failed] = report(Drift, expected={"higher-is-taken-first": "it did once"}).of("failed")
    assert "expected to fail (it did once), and it passes: take it off `expected`" in failed.reason


def test_an_expectation_of_no_check() -> None:
    with pytest.raises(UsageError, match=r"a scorer has no check 'same-twise'\. Did you mean 'same-twice'\?"):
        check_plugin(Drift, expected={"same-twise": "?"})


def test_what_is_not_called_and_what_did_not_work_is_skipped() -> None:
    found = check_plugin(Lazybones, call=False)
    assert found.passed
    assert found.ran == 4
    assert "not to be called" in found.of("skipped")[-1].reason
    failing = check_plugin(Lazybones)
    assert {
        "it fails in ordinary use: see `works`",
        "no installed plugin has it: install its package, or check its file",
    } == {outcome.reason for outcome in failing.of("skipped")}


def test_the_parametrisation_for_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        loudness="""
        from defensekit.api import Scorer
        class Loud(Scorer):
            "|delta|."
            def score(self, t):
                print("hello")
                return t.drift.abs()
        class Silent(Scorer):
            "|delta|."
            def score(self, t):
                return t.drift.abs()
        """,
        test_loudness="""
        from defensekit.testing import conformance
        from loudness import Loud, Silent
        test_silent = conformance(Silent())
        test_loud = conformance(Loud(), expected={"prints-nothing": "it is loud"})
        test_louder = conformance(Loud)
        """,
    )
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA")
    done.assert_outcomes(passed=37, failed=1, xfailed=1, skipped=9)
    done.stdout.fnmatch_lines(["*Loud: expected nothing on standard output, got 'hello*"])
