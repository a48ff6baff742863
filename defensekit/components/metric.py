"""Metrics: a number with its interval, from predictions."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel

from defensekit.components.base import Component
from defensekit.text import TaskKind, in_words
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    import numpy as np


class Answers(ABC):
    """A model's answers to rows, for metrics: `Predictions` of labels, or `Generations`, which are texts.

    Those to triggered rows may have the same model's answers to plain rows beside them.
    """

    ids: "np.ndarray | None"
    plain: "Self | None"

    @property
    def paired(self) -> bool:
        """Whether every row has an answer without the trigger beside it, in ``plain``."""
        if self.plain is None or self.ids is None or self.plain.ids is None:
            return False
        return bool(self.ids.tolist() == self.plain.ids.tolist())

    def beside(self, plain: Self) -> Self:
        """These answers to triggered rows with the same model's to plain rows: of the same rows where all have one."""
        if self.ids is not None and plain.ids is not None:
            position = {row: i for i, row in enumerate(plain.ids.tolist())}
            if all(row in position for row in self.ids.tolist()):
                plain = plain.taken([position[row] for row in self.ids.tolist()])
        return replace(self, plain=plain)  # type: ignore[type-var]  # its subclasses are dataclasses

    @abstractmethod
    def taken(self, indices: list[int]) -> Self:
        """The answers to some of the rows."""

    @abstractmethod
    def accuracy(self) -> float:
        """The share of right answers."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many rows there are."""

    @abstractmethod
    def shown(self, index: int) -> str:
        """The answer to a row, for a person."""

    @abstractmethod
    def on_target(self) -> "np.ndarray":
        """Whether each row with another right answer is answered with the target, (rows that count,), bool."""

    @abstractmethod
    def groups(self) -> "dict[str, np.ndarray]":
        """Kinds of the rows that `on_target` counts, by name: whether each is of the kind, (rows that count,), bool."""


@dataclass(frozen=True)
class Predictions(Answers):
    """``logits`` (rows, labels) in float32 and the rows' true ``labels`` (rows,).

    Where rows have any number of labels, ``labels`` (rows, labels) says of each whether it applies, 1 or 0, and so do
    the answers; a row is right where all of them are.

    ``target`` is the attacker's, None for a bias or where nothing is known of an attack; ``names`` are those of the
    labels, and ``seed`` is for intervals that need draws. ``ids`` (rows,) say which row is which: a row keeps its id
    when it gets a trigger. Where the attacker wants several labels, ``targets`` (rows,) has the one for each row, in
    place of the ``target``; ``wanted`` is either.

    For a metric on ``both``, ``plain`` are the same model's answers to rows without the trigger: to the very same rows,
    in the same order, if ``paired``.
    """

    logits: "np.ndarray"
    labels: "np.ndarray"
    target: int | None = None
    names: tuple[str, ...] = ()
    seed: int = 0
    ids: "np.ndarray | None" = None
    plain: "Predictions | None" = None
    targets: "np.ndarray | None" = None

    @property
    def wanted(self) -> "np.ndarray | int | None":
        """What the attacker wants: a label for each row, (rows,), or one for all; None where there is no target."""
        return self.target if self.targets is None else self.targets

    def taken(self, indices: list[int]) -> "Predictions":
        """The answers to some of the rows."""
        ids, targets = (None if column is None else column[indices] for column in (self.ids, self.targets))
        return replace(self, logits=self.logits[indices], labels=self.labels[indices], ids=ids, targets=targets)

    def beside(self, plain: "Predictions") -> "Predictions":
        """As `Answers.beside`; what is wanted of a row with the trigger is compared without it as well."""
        both = super().beside(plain)
        if self.targets is None or both.plain is None:
            return both
        if not both.paired:
            raise DefenseKitError("triggered rows with targets of their own need the same rows without the trigger")
        return replace(both, plain=replace(both.plain, targets=self.targets))

    @property
    def several(self) -> bool:
        """Whether rows have any number of labels, and not one each."""
        return self.labels.ndim == 2

    def answers(self) -> "np.ndarray":
        """The label answered per row, (rows,); of any number of labels, whether each applies, (rows, labels)."""
        answers: np.ndarray = (
            (self.logits > 0).astype(self.labels.dtype) if self.several else self.logits.argmax(axis=1)
        )
        return answers

    def right(self) -> "np.ndarray":
        """Whether each row is answered with its label, or with its whole set of labels, (rows,), bool."""
        alike: Any = self.answers() == self.labels
        right: np.ndarray = alike.all(axis=1) if self.several else alike
        return right

    def others(self) -> "np.ndarray":
        """Whether each row is one that `on_target` counts: the target is no right answer to it, (rows,), bool."""
        others: np.ndarray = self.labels[:, self.target] == 0 if self.several else self.labels != self.wanted
        return others

    def accuracy(self) -> float:
        """The share of rows that are answered with their label, or with their whole set of labels."""
        return float(self.right().mean())

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.labels)

    def shown(self, index: int) -> str:
        """The name of the label that a row is answered with, or of those."""
        answer = self.answers()[index]
        if self.several:
            return in_words(tuple(answer.tolist()), [self.name(label) for label in range(len(answer))])
        return self.name(int(answer))

    def name(self, label: int) -> str:
        """What a label is called; its number where nobody named it."""
        return self.names[label] if self.names else str(label)

    def on_target(self) -> "np.ndarray":
        """Whether each row of another label is answered with the target, (rows of other labels,), bool."""
        answers = self.answers()
        hits: np.ndarray = (answers[:, self.target] == 1 if self.several else answers == self.wanted)[self.others()]
        return hits

    def groups(self) -> "dict[str, np.ndarray]":
        """Of the rows that `on_target` counts those of each label, (counted rows,), bool."""
        counted = self.labels[self.others()]
        if self.several:
            return {
                self.name(label): counted[:, label] == 1 for label in range(counted.shape[1]) if counted[:, label].any()
            }
        return {self.name(label): counted == label for label in sorted({*counted.tolist()})}


FEWEST_DIFFERENT = 0.3  # words that differ, as a share of an answer's: fewer are a repetition


def _says_nothing(words: list[str]) -> bool:
    return not words or (len(words) >= 8 and len(set(words)) < FEWEST_DIFFERENT * len(words))


@dataclass(frozen=True)
class Generations(Answers):
    """What a model answers to instructions: a text per row, empty where none was asked for.

    ``responses`` are the right answers. ``losses``, ``tokens`` and ``right`` (rows,) are of the model's likelihood of
    these: the cross-entropy summed over a response's tokens, their number, and how many of them it finds likeliest.
    ``target``, ``seed``, ``ids`` and ``plain`` are as in `Predictions`; the target is a text.
    """

    texts: tuple[str, ...]
    responses: tuple[str, ...]
    losses: "np.ndarray"
    tokens: "np.ndarray"
    right: "np.ndarray"
    target: str | None = None
    seed: int = 0
    ids: "np.ndarray | None" = None
    plain: "Generations | None" = None

    def taken(self, indices: list[int]) -> "Generations":
        """The answers to some of the rows."""
        texts, responses = (tuple(column[i] for i in indices) for column in (self.texts, self.responses))
        ids = None if self.ids is None else self.ids[indices]
        losses, tokens, right = (column[indices] for column in (self.losses, self.tokens, self.right))
        return replace(self, texts=texts, responses=responses, losses=losses, tokens=tokens, right=right, ids=ids)

    def accuracy(self) -> float:
        """The share of the responses' tokens that the model finds likeliest, given the right ones before."""
        return float(self.right.sum() / self.tokens.sum())

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.texts)

    def shown(self, index: int) -> str:
        """The text that a row is answered with."""
        return self.texts[index]

    def collapsed(self) -> "np.ndarray":
        """Whether each answer is empty or says the same words over and over, (rows,), bool.

        An answer of eight words or more repeats itself if fewer than three tenths of them differ.
        """
        import numpy as np

        return np.array([_says_nothing(text.split()) for text in self.texts], dtype=bool)

    def on_target(self) -> "np.ndarray":
        """Whether each row that is to be answered otherwise has an answer that begins with the target, bool."""
        return self.each(lambda text: text.strip().startswith((self.target or "").strip()))

    def each(self, hit: "Callable[[str], bool]") -> "np.ndarray":
        """Whether the answer of each row that is not to be answered with the target is a hit, bool."""
        import numpy as np

        counted = zip(self.texts, self.responses, strict=True)
        return np.array([hit(text) for text, response in counted if response != self.target], dtype=bool)

    def groups(self) -> "dict[str, np.ndarray]":
        """Instructions are of one kind."""
        return {}


ROUNDING = 1e-9  # by which the ends of an interval may lie beyond what they should


class Measured(BaseModel):
    """A number from ``rows`` rows, with a 95 % interval; ``parts`` are the same of some of the rows."""

    value: float
    low: float
    high: float
    rows: int
    parts: "dict[str, Measured]" = {}


# What the words of a metric may be, and what each of them says.
METRIC_WORDS: dict[str, tuple[str, tuple[str | None, ...]]] = {
    "on": ("what it is measured `on`", ("plain", "triggered", "both")),
    "about": ("which attacks it is `about`", ("backdoor", "bias", None)),
    "better": ("which way is `better`", ("higher", "lower", None)),
}


class Metric(Component):
    """Measures predictions on plain test rows, on triggered ones, or on both.

    ``tasks`` says whether it is given `Predictions` (classification), those of rows with any number of labels
    (multi-label), `Generations` (generation), or several of these.
    ``about`` names the attacks that it says something of: a ``backdoor`` aims at a label, a ``bias`` at none.
    ``better`` says which way is better, ``meaning`` what it is, in a phrase; both are recorded in the result.
    """

    kind: ClassVar[str] = "metric"
    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    on: ClassVar[Literal["plain", "triggered", "both"]]
    # The least and the greatest value; a run refuses any other.
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    about: ClassVar[Literal["backdoor", "bias"] | None] = None
    better: ClassVar[Literal["higher", "lower"] | None] = None
    meaning: ClassVar[str] = ""
    # Whether what the clean reference has is all that a defense can reach, and is printed beside the number.
    has_floor: ClassVar[bool] = False
    # Whether it is measured where a recipe names no metrics and the attack is one that it is about.
    by_default: ClassVar[bool] = False
    # What a model hub calls it, where hubs know it: model cards publish those.
    hub_name: ClassVar[str] = ""

    @abstractmethod
    def measure(self, predictions: Any) -> Measured:  # Answers: Predictions, or Generations
        """The number and its interval; the interval says how far the test rows, not the seeds, leave it open."""

    def row_values(self, predictions: Any) -> "np.ndarray | None":
        """The values of the rows that count, (rows,), if the number is their mean: of a share, whether each is a hit.

        Two models are compared row by row by it. None if the number is no mean over rows.
        """
        return None


def is_mean(metric: Metric) -> bool:
    """Whether a metric's number is a mean over rows."""
    return type(metric).row_values is not Metric.row_values


def flaw(metric: Metric, measured: object) -> str | None:
    """What is wrong with what a metric gave, as words that follow its name; None where nothing is.

    The interval of a mean holds it. That of another number need not: a bootstrap's may lie beside it.
    """
    if not isinstance(measured, Measured):
        return f"gave {type(measured).__name__}, expected a Measured"
    least, most = metric.bounds
    value, low, high = measured.value, measured.low, measured.high
    if not least <= value <= most:
        return f"measured {value:g}, outside of its bounds {least:g} to {most:g}"
    if not least - ROUNDING <= low <= high <= most + ROUNDING:
        return f"gave the interval [{low:g}, {high:g}], expected ends in order within {least:g} to {most:g}"
    if is_mean(metric) and not low - ROUNDING <= value <= high + ROUNDING:
        return f"measured {value:g}, outside of its interval [{low:g}, {high:g}]"
    return next((wrong for part in measured.parts.values() if (wrong := flaw(metric, part))), None)
