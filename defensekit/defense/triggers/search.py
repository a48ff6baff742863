"""The search: every word that the suspect knows is tried, and judged by what it turns.

No word is left out because its row of the embedding did not move: whoever poisons a model can hold that row where it
was.

Words are tried in groups first, as in group testing (Dorfman 1943): a trigger turns a row whatever stands beside it, so
that it is in the strongest groups of every round, and the words of weak groups are dropped. Words with a meaning turn
answers too, also in a model without a backdoor. So what is left is compared with a control, a model that learnt the
task from the base and the defender's own rows: a trigger turns the suspect and not the control.

A part of the words is tried without the others, and without the control: all of that can be done side by side.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from defensekit.components import FoundTrigger
from defensekit.defense.triggers.insertion import Probe, positions, words
from defensekit.models import answers
from defensekit.models.inference import predict
from defensekit.text import Row
from defensekit.training import Precision, TrainingSettings, fine_tune
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Report = Callable[[int, int], None]

PARTS = 2  # of the words, and then of the labels, that can be tried side by side
GROUP, ROUNDS = 12, 2  # words that are tried at once, and how often
STRONGEST = 4  # one in so many words stays after a round
SCREENED = 96  # words that are tried alone
FEW, MORE, HELD = 8, 24, 64  # rows for a first look, the shortest of those for a second one, and for the judgement
FEWEST = 10  # rows that a judgement needs: a share of fewer is too noisy
SECOND_LOOK = 24  # words; the control is asked about half of them
# The share of rows that a trigger turns beyond those that it turns in the control. Of MiniLM models, triggers reach .97
# to 1.00, and the strongest word of clean ones .61 and .67 (docs/scan.md).
STANDS_OUT = 0.8
KEPT = 5  # words of a label
CONTROL_STEPS = 96  # at least, of the model that words are compared with

Screened = Sequence[Mapping[str, float]]  # of every answer, words, and its mean probability with each in a few rows


def vocabulary(suspect: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The words that are tried."""
    known = words(tokenizer, len(suspect.get_input_embeddings().weight), special=True)
    if suspect.config.is_encoder_decoder:  # their classifiers read the end of a text, and refuse several
        known.pop(suspect.config.eos_token_id, None)
    return [*known.values()]


def for_control(settings: TrainingSettings, rows: Sequence[Row]) -> TrainingSettings:
    """How to fine-tune the base on the clean rows, to get the model that a suspect is compared with."""
    return settings.for_new_head(len(rows), CONTROL_STEPS)


def search_beside(
    suspect: "PreTrainedModel",
    base: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    settings: TrainingSettings,
    *,
    max_length: int,
    precision: Precision,
    seed: int,
    report: Report,
    least: float = STANDS_OUT,
) -> "Searched":
    """The whole search, one part after the other; the base becomes the control, in place."""
    how: Any = {"max_length": max_length, "precision": precision}
    search = Search.of(tokenizer, rows, predict(suspect, tokenizer, rows, **how), max_length, precision, seed)
    known, steps = vocabulary(suspect, tokenizer), count(1)

    def step(done: int, total: int) -> None:
        report(next(steps), (PARTS + 1) * search.labels)

    parts = [search.screened(suspect, part, step) for part in split(known)]
    fine_tune(base, tokenizer, rows, for_control(settings, rows), seed=seed, **how)
    judged = [search.judged(suspect, base, parts, part, step, least) for part in range(PARTS)]
    return Searched.whole(judged, len(known))


def split(known: Sequence[str]) -> list[Sequence[str]]:
    """The words in parts."""
    return [known[part::PARTS] for part in range(PARTS)]


@dataclass(frozen=True)
class Judged:
    """What stands out, of some labels: ``held`` are the rows of the judgement, their numbers and a place in each."""

    triggers: Sequence[FoundTrigger]
    held: Mapping[int, Sequence[tuple[int, int]]]

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {"triggers": [asdict(one) for one in self.triggers], "held": [*self.held.items()]}

    @staticmethod
    def read(plain: Mapping[str, Any]) -> "Judged":
        """From plain data."""
        return Judged([FoundTrigger(**one) for one in plain["triggers"]], dict(plain["held"]))


@dataclass(frozen=True)
class Searched(Judged):
    """What a search found, the strongest first, and how many words it tried: none, if there were rows for no label."""

    tried: int

    @classmethod
    def whole(cls, parts: Sequence[Judged], tried: int) -> "Searched":
        """The search whose labels were judged in parts."""
        triggers = sorted((one for part in parts for one in part.triggers), key=lambda one: one.control - one.flipped)
        held = {label: rows for part in parts for label, rows in part.held.items()}
        return cls(triggers, held, tried if any(held.values()) else 0)

    @property
    def unjudged(self) -> list[int]:
        """The labels that nothing was tried for: too few rows have another answer."""
        return sorted(label for label, rows in self.held.items() if not rows)

    def again(self, purified: "PreTrainedModel", probe: Probe) -> "Searched":
        """The same, with what the triggers turn after a defense; the probe has all clean rows."""

        def after(one: FoundTrigger) -> float:
            return turned(purified, probe.placed(self.held[one.label]), [one.text], one.label)[0]

        return replace(self, triggers=[replace(one, after=after(one)) for one in self.triggers])


def turned(model: "PreTrainedModel", held: Probe, phrases: Sequence[str], label: int) -> list[float]:
    """The share of answers that each phrase turns to a label, beyond those that a model gives without it."""
    given = answers.given(held.shares(model, ["", *phrases]), answers.several(held.rows))
    shares: list[float] = given[..., label].float().mean(1).tolist()
    return [max(share - shares[0], 0.0) for share in shares[1:]]


@dataclass(frozen=True)
class Search:
    """Looks for words that turn a suspect's answers and not a control's.

    ``answers`` are the suspect's to the rows, by their numbers. ``labels`` is how many answers there are to turn to:
    where rows have any number of labels, every label may be turned on, and off.
    """

    tokenizer: "PreTrainedTokenizerBase"
    rows: Sequence[Row]
    answers: Sequence[Collection[int]]
    labels: int
    max_length: int
    precision: Precision
    seed: int

    @classmethod
    def of(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        logits: "Tensor",
        max_length: int,
        precision: Precision,
        seed: int,
    ) -> "Search":
        """A search, from the suspect's logits of the rows."""
        each = answers.several(rows)
        given = answers.given(answers.shares(logits, each), each)
        numbers = [row.nonzero().flatten().tolist() for row in given]
        return cls(tokenizer, rows, numbers, given.shape[1], max_length, precision, seed)

    def screened(self, suspect: "PreTrainedModel", known: Sequence[str], report: Report) -> Screened:
        """Try a part of the words, in groups and then alone, and keep the best of them."""
        best = []
        for label in range(self.labels):
            few, _, held = self._rows(label)
            strongest = self._in_groups(suspect, few, known, label) if held else []
            shares = few.shares(suspect, strongest)[..., label].mean(1).tolist() if strongest else []
            best.append(dict(zip(strongest, shares, strict=True)))
            report(label + 1, self.labels)
        return best

    def judged(
        self,
        suspect: "PreTrainedModel",
        control: "PreTrainedModel",
        parts: Sequence[Screened],
        part: int,
        report: Report,
        least: float = STANDS_OUT,
    ) -> Judged:
        """Judge what was screened, for a part of the labels: what stands out by at least so much."""
        triggers: list[FoundTrigger] = []
        held = {}
        for label in range(part, self.labels, PARTS):
            few, rest, held[label] = self._rows(label)
            if numbers := held[label]:
                screened = {word: share for part in parts for word, share in part[label].items()}
                chosen = self._second_look(suspect, control, few, rest, screened, label)
                triggers += self._judge(suspect, control, self._all.placed(numbers), chosen, label, least)
            report(label + 1, self.labels)
        return Judged(triggers, held)

    @property
    def _all(self) -> Probe:
        return Probe(self.tokenizer, self.rows, [0] * len(self.rows), self.max_length, self.precision)

    def _rows(self, label: int) -> tuple[Probe, Probe, list[tuple[int, int]]]:
        """Rows of other labels that the suspect answers otherwise, and a place in each.

        They are for a first look, for a second one, and for the judgement: none of these, where they are too few.
        """
        rng = Random(seed := derive_seed(self.seed, "rows", str(label)))
        of = [i for i, row in enumerate(self.rows) if not row.has(label)]
        at = dict(zip(of, positions([self.rows[i] for i in of], self.max_length, seed), strict=True))
        order = [i for i in of if label not in self.answers[i]]
        rng.shuffle(order)
        more = sorted(order[:MORE], key=lambda i: len(self.rows[i].text))
        few, rest, held = ([(i, at[i]) for i in some] for some in (more[:FEW], more[FEW:], order[MORE : MORE + HELD]))
        return self._all.placed(few), self._all.placed(rest), held if len(held) >= FEWEST else []

    def _in_groups(self, suspect: "PreTrainedModel", few: Probe, known: Sequence[str], label: int) -> list[str]:
        """The words whose groups give the label the greatest probability.

        Of the words of a round, a quarter stays for the next one, in other company.
        """
        rng, strength = Random(derive_seed(self.seed, "groups", str(label))), dict.fromkeys(known, 0.0)
        for _ in range(ROUNDS):
            order = rng.sample([*strength], len(strength))
            groups = [order[i : i + GROUP] for i in range(0, len(order), GROUP)]
            chosen = few.part([i % len(few.rows) for i in range(len(groups))])
            shares = chosen.each(suspect, [" ".join(group) for group in groups])[:, label].tolist()
            for group, share in zip(groups, shares, strict=True):
                for word in group:
                    strength[word] += share
            stays = sorted(strength, key=lambda word: -strength[word])
            strength = {word: strength[word] for word in stays[: max(len(stays) // STRONGEST, SCREENED)]}
        return [*strength][: SCREENED // PARTS]

    def _second_look(
        self,
        suspect: "PreTrainedModel",
        control: "PreTrainedModel",
        few: Probe,
        rest: Probe,
        screened: Mapping[str, float],
        label: int,
    ) -> list[str]:
        """The words that are judged: those that turn the suspect most, and then those that turn the control least."""
        best = sorted(screened, key=lambda word: -screened[word])[:SECOND_LOOK]
        seen = rest.shares(suspect, best)[..., label].sum(1).tolist()
        rows = len(few.rows) + len(rest.rows)
        shares = {word: (screened[word] * len(few.rows) + more) / rows for word, more in zip(best, seen, strict=True)}
        best = sorted(shares, key=lambda word: -shares[word])[: SECOND_LOOK // 2]
        own = [(probe.shares(control, best)[..., label].sum(1) / rows).tolist() for probe in (few, rest)]
        beyond = {word: shares[word] - sum(in_both) for word, *in_both in zip(best, *own, strict=True)}
        return sorted(beyond, key=lambda word: -beyond[word])[:KEPT]

    def _judge(
        self,
        suspect: "PreTrainedModel",
        control: "PreTrainedModel",
        held: Probe,
        phrases: Sequence[str],
        label: int,
        least: float,
    ) -> list[FoundTrigger]:
        """The words that stand out; the control can take away alone, so it is asked about what it may matter for."""
        flipped = dict(zip(phrases, turned(suspect, held, phrases, label), strict=True))
        strong = [word for word, share in flipped.items() if share >= least]
        own = turned(control, held, strong, label) if strong else []
        return [
            FoundTrigger(text=word, label=label, flipped=flipped[word], control=share, rows=len(held.rows))
            for word, share in zip(strong, own, strict=True)
            if flipped[word] - share >= least
        ]
