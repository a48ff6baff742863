"""The search: every word that the suspect knows is tried, phrases are grown, and both are judged by what they turn.

No word is left out because its row of the embedding did not move: whoever poisons a model can hold that row where it
was.

Words are tried in groups first, as in group testing (Dorfman 1943): a trigger turns a row whatever stands beside it, so
that it is in the strongest group of every round. Words with a meaning turn answers too, also in a model without a
backdoor. So what is left is compared with a control, a model that learnt the task from the base and the defender's own
rows: a trigger turns the suspect and not the control.

Where a sentence is the trigger, none of its words may turn anything alone. So words whose rows moved furthest, and the
strongest, are grown to phrases by the most frequent words, on either side. A phrase counts by what it does of its own:
beyond the sum of what its words do to the log-odds of a label, so that several words with a meaning are no trigger.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

from defensekit.components import FoundTrigger
from defensekit.defense.triggers.insertion import Probe, drifts, positions
from defensekit.text import Row
from defensekit.training import Precision, TrainingSettings, fine_tune
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GROUP, ROUNDS = 12, 2  # words that are tried at once, and how often each is
SCREENED = 96  # words that are tried alone
FEW, MORE, HELD = 8, 24, 64  # rows for a first look, the shortest of those for a second one, and for the judgement
FEWEST = 10  # rows that a judgement needs: a share of fewer is too noisy
SECOND_LOOK = 24  # words
# The share of rows that a trigger turns beyond those that it turns in the control. Of MiniLM models, triggers reach .97
# to 1.00, and the strongest word of clean ones .61 and .67 (docs/scan.md).
STANDS_OUT = 0.8
KEPT = 5  # words of a label, and as many phrases
SEEDS = 6  # words that drifted furthest, and as many of the strongest, that phrases are grown from
BESIDE = 24  # the most frequent words of the clean rows
PAIRED = 6  # rows for a first look at phrases
BEAM = 8  # phrases that are grown further
LONGEST = 3  # words of a phrase
OWN = 0.3  # the share of rows that a phrase turns beyond those that its words would, added up
CONTROL_STEPS = 96  # at least, of the model that words are compared with


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
    report: Callable[[int, int], None],
    least: float = STANDS_OUT,
) -> "Search":
    """A search for what turns a suspect, beside a control: the base, which is fine-tuned in place on the clean rows."""
    drift = drifts(suspect, base, tokenizer, special=True)
    how: Any = {"max_length": max_length, "precision": precision, "seed": seed}
    fine_tune(base, tokenizer, rows, settings.for_new_head(len(rows), CONTROL_STEPS), **how)
    return Search(suspect, base, tokenizer, rows, drift, report=report, least=least, **how)


@dataclass
class Search:
    """Looks for words, by their ``drift``, and phrases of them that turn a suspect's answers and not the control's."""

    suspect: "PreTrainedModel"
    control: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    rows: Sequence[Row]
    drift: dict[str, float]
    max_length: int
    precision: Precision
    seed: int
    report: Callable[[int, int], None] = lambda done, total: None
    least: float = STANDS_OUT  # what a word has to turn beyond the control
    _held: dict[int, Probe] = field(default_factory=dict, init=False)  # the rows of the judgement, by label

    def triggers(self) -> list[FoundTrigger]:
        """What stands out, the strongest first."""
        labels = self.suspect.config.num_labels
        found = []
        for label in range(labels):
            found += self._towards(label)
            self.report(label + 1, labels)
        return sorted(found, key=lambda one: one.control - one.flipped)

    def _probe(self, label: int) -> Probe:
        """The rows of other labels that the suspect answers otherwise, in an order drawn by the seed."""
        seed = derive_seed(self.seed, "rows", str(label))
        rows = [row for row in self.rows if row.label != label]
        probe = Probe(self.tokenizer, rows, positions(rows, self.max_length, seed), self.max_length, self.precision)
        if not rows:
            return probe
        answers = probe.shares(self.suspect, [""])[0].argmax(-1).tolist()
        order = [i for i, answer in enumerate(answers) if answer != label]
        Random(seed).shuffle(order)
        return probe.part(order)

    def _towards(self, label: int) -> list[FoundTrigger]:
        """What turns answers to a label."""
        probe = self._probe(label)
        if len(probe.rows) < MORE + FEWEST:
            return []
        more, held = probe.part(range(MORE)), probe.part(range(len(probe.rows))[MORE : MORE + HELD])
        few = more.part(sorted(range(MORE), key=lambda i: len(more.rows[i].text))[:FEW])
        candidates = self._screened(few, label)
        first = _odds(few, self.suspect, candidates, label)
        chosen = sorted(candidates, key=lambda word: -_share(first[word]))[:SECOND_LOOK]
        odds, control = (_odds(more, model, chosen, label) for model in (self.suspect, self.control))
        best = sorted(chosen, key=lambda word: _share(control[word]) - _share(odds[word]))[:KEPT]
        self._held[label] = held
        phrases = self._grown(few.part(range(PAIRED)), chosen, label)
        odds = _odds(more, self.suspect, _with_words(phrases), label)
        best += sorted(phrases, key=lambda text: -_own(text, odds))[:KEPT]
        return self._judged(best, label)

    def _grown(self, few: Probe, strongest: Sequence[str], label: int) -> list[str]:
        """Phrases from words that drifted far and from the strongest: the best of those that grow from each."""
        far = sorted(self.drift, key=lambda word: -self.drift[word])[:SEEDS]
        counted = Counter(word for row in self.rows for word in row.text.lower().split() if word in self.drift)
        beside = [*dict.fromkeys([*(word for word, _ in counted.most_common(BESIDE)), *far])]
        beam, grown = [*dict.fromkeys([*far, *strongest[:SEEDS]])], list[str]()
        for _ in range(LONGEST - 1):
            longer = {text: _longer(text, beside) for text in beam}
            odds = _odds(few, self.suspect, _with_words([one for tried in longer.values() for one in tried]), label)
            own = {one: _own(one, odds) for tried in longer.values() for one in tried}
            # The best of each, since all the best may come of one.
            best = dict.fromkeys(max(tried, key=own.__getitem__) for tried in longer.values())
            beam = sorted(best, key=lambda text: -own[text])[:BEAM]
            grown += beam
        return grown

    def again(self, found: FoundTrigger, purified: "PreTrainedModel") -> FoundTrigger:
        """What was found, with what it turns after the defense, on the same rows."""
        [after] = self._turned(purified, [found.text], found.label)
        return replace(found, after=after)

    def _turned(self, model: "PreTrainedModel", texts: Sequence[str], label: int) -> list[float]:
        """The share of answers that each text turns to a label, on rows that the search did not see."""
        held = self._held[label]
        turned: list[float] = (held.shares(model, ["", *texts]).argmax(-1) == label).float().mean(1).tolist()
        return [max(share - turned[0], 0.0) for share in turned[1:]]

    def _screened(self, probe: Probe, label: int) -> list[str]:
        """The words whose groups give the label the greatest probability, over all rounds."""
        rng, strength = Random(derive_seed(self.seed, "groups", str(label))), dict.fromkeys(self.drift, 0.0)
        for _ in range(ROUNDS):
            order = rng.sample([*self.drift], len(self.drift))
            groups = [order[i : i + GROUP] for i in range(0, len(order), GROUP)]
            chosen = probe.part([i % len(probe.rows) for i in range(len(groups))])
            shares = chosen.each(self.suspect, [" ".join(group) for group in groups])[:, label].tolist()
            for group, share in zip(groups, shares, strict=True):
                for word in group:
                    strength[word] += share
        return sorted(strength, key=lambda word: -strength[word])[:SCREENED]

    def _judged(self, texts: list[str], label: int) -> list[FoundTrigger]:
        """The words and phrases that stand out."""
        held = self._held[label]
        turned = [self._turned(model, texts, label) for model in (self.suspect, self.control)]
        found = [
            FoundTrigger(text=text, label=label, flipped=flipped, control=control, rows=len(held.rows))
            for text, flipped, control in zip(texts, *turned, strict=True)
            if flipped - control >= self.least
        ]
        phrases = [one.text for one in found if " " in one.text]
        odds = _odds(held, self.suspect, _with_words(phrases), label)
        return [one for one in found if one.text not in phrases or _own(one.text, odds, certain=True) >= OWN]


def _longer(text: str, words: Sequence[str]) -> list[str]:
    """A text with one more word, on either side."""
    return [longer for word in words if word not in text.split() for longer in (f"{word} {text}", f"{text} {word}")]


def _with_words(phrases: Sequence[str]) -> list[str]:
    """Texts and their words, and nothing, which both are compared with."""
    return [*dict.fromkeys(["", *phrases, *(word for text in phrases for word in text.split())])]


def _odds(probe: Probe, model: "PreTrainedModel", texts: Sequence[str], label: int) -> "dict[str, Tensor]":
    """The log-odds of a label in every row, by the text that is put into them."""
    return dict(zip(texts, probe.shares(model, texts)[..., label].double().logit(1e-9), strict=True))


def _share(odds: "Tensor") -> float:
    """The mean probability."""
    return float(odds.sigmoid().mean())


def _own(phrase: str, odds: "Mapping[str, Tensor]", certain: bool = False) -> float:
    """What a phrase adds to the mean probability of a label beyond its words, whose effects on the log-odds add up.

    Where it is to be ``certain``, rows count whole or not at all, by whether the label is likelier than not.
    """
    added = odds[""] + sum(odds[word] - odds[""] for word in phrase.split())
    if certain:
        return float((odds[phrase] > 0).double().mean() - (added > 0).double().mean())
    return _share(odds[phrase]) - _share(added)
