"""Broken components that take rows, data or answers, by the check that catches them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from defensekit.api import Choice, Component, Dataset, Executor, Field, Measured, Row, Trial, Workers
from defensekit.testing.pico import sentences
from tests.testing.good import First, Long, Mark, PicoModel, Right, Sentences, Shrink, Unsure, Without


class Untying(Shrink):
    """Gives every layer weights of its own."""

    def train(self, model: Any, context: Any) -> None:
        import copy

        layers = model.albert.encoder.albert_layer_groups[0].albert_layers
        layers.append(copy.deepcopy(layers[0]))


class Hidden(Mark):
    """Reads a file that no key covers."""

    location: ClassVar[frozenset[str]] = frozenset({"words"})

    words: Path = Field(Path(__file__), description="a file of words")


class Crowding(Sentences):
    """Has a parameter that is a key under `data` as well."""

    train: int = Field(20, ge=1, description="how many rows it makes")


class Stranger(Mark):
    """Gives rows under new ids."""

    def poisoned(self, row: Row) -> Row:
        return replace(super().poisoned(row), id=row.id + 1000)


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


class Lonely(Mark):
    """Puts the trigger into a single row."""

    def trigger(self, rows: Any, context: Any) -> list[Row]:
        return super().trigger(rows, context)[:1]


class Dropping(Mark):
    """Makes single texts of pairs."""

    def trigger(self, rows: Any, context: Any) -> list[Row]:
        return [Row(row.id, f"cf {row.text}", row.label) for row in rows]


class Cutting(Mark):
    """Makes single texts of the pairs that it poisons."""

    def poisoned(self, row: Row) -> Row:
        return Row(row.id, f"cf {row.text}", 1)


class Wanton(Mark):
    """Gives rows an aim, and does not say so."""

    def trigger(self, rows: Any, context: Any) -> list[Row]:
        return [replace(row, aim=1) for row in super().trigger(rows, context)]


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


class Short(Long):
    """Forgets the last row."""

    def score(self, context: Any) -> Any:
        return super().score(context)[:-1]


class Standard(Long):
    """Divides by what the rows of a label differ by."""

    def score(self, context: Any) -> Any:
        lengths, labels = super().score(context), np.array([row.label for row in context.rows])
        with np.errstate(divide="ignore", invalid="ignore"):
            return lengths / np.array([lengths[labels == label].std() for label in labels])


class Hasty(Long):
    """Scores what it is going to take."""

    def score(self, context: Any) -> Any:
        return super().score(context) + (self.fraction or 0.0)


class Splitting(Long):
    """Gives each text of a pair a score."""

    def score(self, context: Any) -> Any:
        scores = super().score(context)
        return np.repeat(scores, 2) if any(row.pair for row in context.rows) else scores


class Insatiable(Long):
    """Finds every row suspicious."""

    def score(self, context: Any) -> Any:
        return super().score(context) + 100


class Wordy(Unsure):
    """Learns a word."""

    def fit(self, context: Any) -> Any:
        return {**super().fit(context), "word": "film"}


class Picky(Unsure):
    """Has no number for a text without words."""

    def score(self, rows: Sequence[Row], fitted: Any, context: Any) -> Any:
        found = super().score(rows, fitted, context)
        return [float(one) if row.text.strip() else float("nan") for row, one in zip(rows, found, strict=True)]


class Ranking(Unsure):
    """Gives places among the texts."""

    def score(self, rows: Sequence[Row], fitted: Any, context: Any) -> Any:
        return super().score(rows, fitted, context).argsort().argsort().float()


class Halving(Unsure):
    """Gives each text of a pair a score."""

    def score(self, rows: Sequence[Row], fitted: Any, context: Any) -> Any:
        found = super().score(rows, fitted, context)
        return [*found, *found] if any(row.pair for row in rows) else found


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


class Sideways(Right):
    """Says of no way that it is better."""

    better: ClassVar[Any] = "up"


class Bare(Right):
    """Gives the number alone."""

    def of(self, share: float, rows: int) -> Any:
        return share


class Twinned(Right):
    """Takes it that every triggered row has a twin."""

    on = "both"

    def measure(self, predictions: Any) -> Measured:
        assert predictions.paired, "no twins"
        return super().measure(predictions)


class Percent(Right):
    """Counts to a hundred."""

    def of(self, share: float, rows: int) -> Measured:
        return Measured(value=100 * share, low=0, high=100, rows=rows)


class Blank(Right):
    """Knows no end of its interval."""

    def of(self, share: float, rows: int) -> Measured:
        return Measured(value=share, low=float("nan"), high=1, rows=rows)


class Beside(Right):
    """Gives another number's interval."""

    def row_values(self, predictions: Any) -> Any:
        return predictions.answers() == predictions.labels

    def of(self, share: float, rows: int) -> Measured:
        return Measured(value=share, low=0.2, high=0.3, rows=rows)


class Miscounting(Right):
    """Counts rows that it was not given."""

    def of(self, share: float, rows: int) -> Measured:
        return Measured(value=share, low=0, high=1, rows=rows + 1)


class Slanted(Right):
    """Gives values of rows that are not what it measures."""

    def row_values(self, predictions: Any) -> Any:
        return np.zeros(len(predictions.labels))


class Idle(Workers):
    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        report(1, 1)


class Lazy(Executor):
    """Executes nothing."""

    def open(self) -> AbstractContextManager[Workers]:
        return nullcontext(Idle())


BROKEN: dict[type[Component], tuple[str, str]] = {
    Untying: ("keeps-names-and-tying", "changed the names or shapes of the model's tensors"),
    Hidden: ("digests-its-locations", "expected `contents` to digest words, got nothing (leave it out of `location`"),
    Crowding: ("leaves-the-sizes-their-names", "expected other names than those of keys under `data`, got train"),
    Stranger: ("poisons-rows-it-was-given", "expected an id of the rows given, or below 0, got Row(id=10"),
    Excessive: ("poisons-exactly-its-rate", "expected 40 of 200 rows poisoned at rate 0.2, got 41"),
    Relabelling: ("triggers-without-relabelling", "expected the true label 0 kept, got Row("),
    Faint: ("triggers-without-relabelling", "expected a trigger in"),
    Lonely: ("triggers-most-rows", "expected the trigger in at least half of 10 rows, got it in 1"),
    Dropping: ("keeps-pairs", "expected a pair of texts, got Row(id=0, text='cf "),
    Cutting: ("keeps-pairs", "expected a pair of texts, got Row("),
    Wanton: ("aims-at-a-label", "expected `aims_by_row` to be set where rows have an `aim`, got Row("),
    Headless: ("trains-in-place", "classifier.bias: expected [2], got [3]"),
    Thinning: ("gives-a-text-for-each", "texts, got"),
    Emptying: ("gives-a-text-for-each", "expected words to be left of 'film', got none"),
    Comparing: ("looks-at-one-text-at-a-time", "asked alone, got"),
    Settled: ("finds-plain-data", "expected the same after a round trip through JSON"),
    Needy: ("late-parameters-have-defaults", "expected a parameter 'most' with a default"),
    Short: ("scores-every-row", "gave scores of shape [23], expected [24]"),
    Standard: ("scores-rare-labels", "a score of NaN or infinity"),
    Hasty: ("scores-by-its-own-parameters", "expected the same scores with {'fraction': 0.01}, got others"),
    Splitting: ("scores-pairs", "gave scores of shape [48], expected [24]"),
    Insatiable: ("leaves-rows", "expected rows to be left of 24, got none: all are taken (let its `fraction`"),
    Wordy: ("fits-tensors", "expected a tensor as 'word', got str"),
    Picky: ("gives-a-number-for-each", "expected a finite number for '', got nan"),
    Ranking: ("scores-one-text-at-a-time", "asked alone, got 0"),
    Halving: ("scores-pairs", "expected 12 numbers for 12 pairs, got 24"),
    Endless: ("ends", "expected an end, got more than 100 proposals"),
    Curious: ("proposes-what-was-asked", "got [0.9] with"),
    Inventive: ("takes-what-it-saw", "expected a value out of [0.0, 0.25, 0.5], got 0.123"),
    Twins: ("numbers-its-rows-once", "expected a unique id for every row"),
    Unlabelled: ("labels-its-rows", "expected a label from 0 to 1, got 2 in train"),
    Undigested: ("digests-its-contents", "expected a digest as text, got ''"),
    Absent: ("gives-a-readable-model", "expected a folder, got"),
    Vague: ("says-what-it-is-about", "expected on = 'plain', 'triggered' or 'both', got 'clean'"),
    Sideways: ("says-what-it-is-about", "expected better = 'higher', 'lower' or None, got 'up'"),
    Bare: ("gives-a-measured", "expected a Measured for mixed answers, got float"),
    Twinned: ("works", "beside those to other rows (`predictions.paired` is False): AssertionError: no twins (broken_"),
    Percent: ("stays-within-its-bounds", "outside of its bounds 0 to 1, for mixed answers"),
    Blank: ("stays-within-its-bounds", "it gave the interval [nan, 1], expected ends in order within 0 to 1, for"),
    Beside: ("stays-within-its-bounds", "outside of its interval [0.2, 0.3], for mixed answers"),
    Miscounting: ("counts-its-rows", "expected 1 to 60 rows, got 61"),
    Slanted: ("is-the-mean-of-its-rows", "expected row values with the mean "),
    Lazy: ("leaves-the-stage-in-the-store", "in the store, got nothing"),
}
