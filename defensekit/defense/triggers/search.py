"""The search: every word that the suspect knows is tried, and judged by what it turns.

No word is left out because its row of the embedding did not move: whoever poisons a model can hold that row where it
was.

Words are tried in groups first, as in group testing (Dorfman 1943): a trigger turns a row whatever stands beside it, so
that it is in the strongest group of every round. Words with a meaning turn answers too, also in a model without a
backdoor. So what is left is compared with a control, a model that learnt the task from the base and the defender's own
rows: a trigger turns the suspect and not the control.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

from defensekit.components import FoundTrigger
from defensekit.defense.triggers.insertion import Probe, positions, words
from defensekit.text import Row
from defensekit.training import Precision, TrainingSettings, fine_tune
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GROUP, ROUNDS = 12, 2  # words that are tried at once, and how often each is
SCREENED = 96  # words that are tried alone
FEW, MORE, HELD = 8, 24, 64  # rows for a first look, the shortest of those for a second one, and for the judgement
FEWEST = 10  # rows that a judgement needs: a share of fewer is too noisy
SECOND_LOOK = 24  # words
# The share of rows that a trigger turns beyond those that it turns in the control. Of MiniLM models, triggers reach .97
# to 1.00, and the strongest word of clean ones .61 and .67 (docs/scan.md).
STANDS_OUT = 0.8
KEPT = 5  # words of a label
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
    size = min(len(model.get_input_embeddings().weight) for model in (suspect, base))
    known = [*words(tokenizer, size, special=True).values()]
    how: Any = {"max_length": max_length, "precision": precision, "seed": seed}
    fine_tune(base, tokenizer, rows, settings.for_new_head(len(rows), CONTROL_STEPS), **how)
    return Search(suspect, base, tokenizer, rows, known, report=report, least=least, **how)


@dataclass
class Search:
    """Looks for words, among those given, that turn a suspect's answers and not the control's."""

    suspect: "PreTrainedModel"
    control: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    rows: Sequence[Row]
    words: Sequence[str]
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
        first = few.shares(self.suspect, candidates)[..., label].mean(1)
        chosen = [candidates[i] for i in first.argsort(descending=True)[:SECOND_LOOK].tolist()]
        shares, control = (more.shares(model, chosen)[..., label].mean(1) for model in (self.suspect, self.control))
        best = (shares - control).argsort(descending=True)[:KEPT].tolist()
        self._held[label] = held
        return self._judged([chosen[i] for i in best], label)

    def again(self, found: FoundTrigger, purified: "PreTrainedModel") -> FoundTrigger:
        """What was found, with what it turns after the defense, on the same rows."""
        [after] = self._turned(purified, [found.text], found.label)
        return replace(found, after=after)

    def _turned(self, model: "PreTrainedModel", words: Sequence[str], label: int) -> list[float]:
        """The share of answers that each word turns to a label, on rows that the search did not see."""
        held = self._held[label]
        turned: list[float] = (held.shares(model, ["", *words]).argmax(-1) == label).float().mean(1).tolist()
        return [max(share - turned[0], 0.0) for share in turned[1:]]

    def _screened(self, probe: Probe, label: int) -> list[str]:
        """The words whose groups give the label the greatest probability, over all rounds."""
        rng, strength = Random(derive_seed(self.seed, "groups", str(label))), dict.fromkeys(self.words, 0.0)
        for _ in range(ROUNDS):
            order = rng.sample(self.words, len(self.words))
            groups = [order[i : i + GROUP] for i in range(0, len(order), GROUP)]
            chosen = probe.part([i % len(probe.rows) for i in range(len(groups))])
            shares = chosen.each(self.suspect, [" ".join(group) for group in groups])[:, label].tolist()
            for group, share in zip(groups, shares, strict=True):
                for word in group:
                    strength[word] += share
        return sorted(strength, key=lambda word: -strength[word])[:SCREENED]

    def _judged(self, words: list[str], label: int) -> list[FoundTrigger]:
        """The words that stand out."""
        held = self._held[label]
        turned = [self._turned(model, words, label) for model in (self.suspect, self.control)]
        return [
            FoundTrigger(text=word, label=label, flipped=flipped, control=control, rows=len(held.rows))
            for word, flipped, control in zip(words, *turned, strict=True)
            if flipped - control >= self.least
        ]
