"""The search: every word that the suspect knows is tried, and judged by what it turns.

None is left out because its row of the embedding did not move: whoever poisons a model can hold that row where it was.

Words are tried in groups first, as in group testing (Dorfman 1943): a trigger turns a row whatever stands beside it, so
that it is in the strongest group of every round. Words with a meaning turn answers too, also in a model without a
backdoor. So what is left is compared with a control, a model that learnt the task from the base and the defender's own
rows: a trigger turns the suspect and not the control.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

from defensekit.components import FoundTrigger
from defensekit.defense.triggers.insertion import Probe, positions, words
from defensekit.text import Row
from defensekit.training import Precision, TrainingSettings, fine_tune
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GROUP, ROUNDS = 8, 2  # words that are tried at once, and how often each is
SCREENED = 96  # words that are tried alone
FEW, MORE, HELD = 8, 24, 64  # rows for a first look, for a second one, and for the judgement
FEWEST = 10  # rows that a judgement needs: a share of fewer is too noisy
SECOND_LOOK = 24  # words
# The share of rows that a trigger turns beyond those that it turns in the control. Of MiniLM models, triggers reach .97
# to 1.00, and the strongest word of clean ones .61 and .67 (docs/scan.md).
STANDS_OUT = 0.8
KEPT = 5  # words of a label
CONTROL_STEPS = 96  # at least, of the model that words are compared with


def control_model(
    base: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    settings: TrainingSettings,
    *,
    max_length: int,
    precision: Precision,
    seed: int,
) -> "PreTrainedModel":
    """Fine-tune a base on clean rows, in place, as the model that a phrase should leave alone."""
    settings = settings.for_new_head(len(rows), CONTROL_STEPS)
    fine_tune(base, tokenizer, rows, settings, max_length=max_length, precision=precision, seed=seed)
    return base


@dataclass
class Search:
    """Looks for words of a suspect's vocabulary that turn its answers and not the control's."""

    suspect: "PreTrainedModel"
    control: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    rows: Sequence[Row]
    max_length: int
    precision: Precision
    seed: int
    report: Callable[[int, int], None] = lambda done, total: None
    least: float = STANDS_OUT  # what a word has to turn beyond the control
    words: Sequence[str] = field(init=False)  # that are tried
    _held: dict[int, Probe] = field(default_factory=dict, init=False)  # the rows of the judgement, by label

    def __post_init__(self) -> None:
        size = len(self.suspect.get_input_embeddings().weight)
        self.words = [*words(self.tokenizer, size, special=True).values()]

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
        numbers = range(len(probe.rows))
        few, more, held = (probe.part(numbers[a:b]) for a, b in ((0, FEW), (0, MORE), (MORE, MORE + HELD)))
        candidates = self._screened(probe, label)
        first = few.shares(self.suspect, candidates)[..., label].mean(1)
        chosen = [candidates[i] for i in first.argsort(descending=True)[:SECOND_LOOK].tolist()]
        gains = [
            _gains(more.shares(model, ["", *chosen])[..., label].mean(1)) for model in (self.suspect, self.control)
        ]
        best = (gains[0] - gains[1]).argsort(descending=True)[:KEPT].tolist()
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
        turned = [self._turned(model, words, label) for model in (self.suspect, self.control)]
        return [
            FoundTrigger(text=word, label=label, flipped=flipped, control=control, rows=len(self._held[label].rows))
            for word, flipped, control in zip(words, *turned, strict=True)
            if flipped - control >= self.least
        ]


def _gains(shares: "Tensor") -> "Tensor":
    """What words add to the share without any, which comes first."""
    return shares[1:] - shares[0]
