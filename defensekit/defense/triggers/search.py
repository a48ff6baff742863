"""The search: words are tried by drift and by gradient, and judged by what they turn.

Words with a meaning turn answers too, also in a model without a backdoor. So everything is compared with a control, a
model that learnt the task from the base and the defender's own rows: a trigger turns the suspect and not the control.
Phrases that are grown by the gradient turn any model and no other (Wallace et al. 2019), so that the control says
nothing of them: single words alone are tried.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

from defensekit.components import FoundTrigger
from defensekit.defense.triggers.insertion import Probe, positions, words
from defensekit.text import Row, encode
from defensekit.training import Precision, TrainingSettings, fine_tune
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BY_DRIFT, BY_GRADIENT = 75, 75  # words that are tried towards a label
RARE = 8  # occurrences in the clean rows, at most, of a word that is tried for its drift
FEW, MORE, HELD = 8, 24, 64  # rows for a first look, for a second one, and for the judgement
FEWEST = 10  # rows that a judgement needs: a share of fewer is too noisy
SECOND_LOOK = 24  # words
STANDS_OUT = 0.6  # the share of rows that a trigger turns beyond those that it turns in the control
KEPT = 5  # words of a label
CONTROL_STEPS = 96


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
    """Fine-tune a base on clean rows, in place, as the model that a phrase should leave alone.

    It gets `CONTROL_STEPS` at least, of small batches: a few rows are few steps.
    """
    batch = min(settings.batch_size, 16)
    epochs = max(settings.epochs, -(-CONTROL_STEPS // -(-len(rows) // batch)))
    settings = settings.model_copy(update={"epochs": epochs, "batch_size": batch})
    fine_tune(base, tokenizer, rows, settings, max_length=max_length, precision=precision, seed=seed)
    return base


@dataclass
class Search:
    """Looks for words that turn a suspect's answers and not the control's.

    ``drift`` (vocabulary,) is how far each row of the suspect's embedding lies from the base's. ``tried`` counts
    the words.
    """

    suspect: "PreTrainedModel"
    control: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    rows: Sequence[Row]
    drift: "Tensor"
    max_length: int
    precision: Precision
    seed: int
    report: Callable[[int, int], None] = lambda done, total: None
    tried: int = field(default=0, init=False)

    def triggers(self) -> list[FoundTrigger]:
        """What stands out, the strongest first."""
        labels = self.suspect.config.num_labels
        found = []
        for label in range(labels):
            found += self._towards(label)
            self.report(label + 1, labels)
        return sorted(found, key=lambda one: one.control - one.flipped)

    @cached_property
    def _words(self) -> dict[int, str]:
        return words(self.tokenizer, len(self.drift))

    @cached_property
    def _by_drift(self) -> list[str]:
        """Rare words whose rows moved furthest."""
        encoded = encode(self.tokenizer, self.rows, self.max_length)
        counts = Counter(token for row in encoded for token in row["input_ids"])
        rare = [token for token in self._words if counts[token] <= RARE]
        order = self.drift[rare].argsort(descending=True)[:BY_DRIFT].tolist()
        return [self._words[rare[i]] for i in order]

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
        candidates = list(dict.fromkeys([*self._by_gradient(probe, label), *self._by_drift]))
        self.tried += len(candidates)
        first = few.shares(self.suspect, candidates)[..., label].mean(1)
        chosen = [candidates[i] for i in first.argsort(descending=True)[:SECOND_LOOK].tolist()]
        gains = [
            _gains(more.shares(model, ["", *chosen])[..., label].mean(1)) for model in (self.suspect, self.control)
        ]
        best = (gains[0] - gains[1]).argsort(descending=True)[:KEPT].tolist()
        return self._judged([chosen[i] for i in best], held, label)

    def _by_gradient(self, probe: Probe, label: int) -> list[str]:
        """Words that should turn the suspect, and the control least of all.

        Words with a meaning have a large gradient in both: what is left is what only the suspect learnt.
        """
        import torch

        tokens = list(self._words)
        gains = []
        for model in (self.suspect, self.control):
            table = model.get_input_embeddings().weight.detach()[tokens].float().cpu()
            gain = table @ probe.slope(model, label)
            gains.append((gain - gain.mean()) / gain.std().clamp(min=torch.finfo(gain.dtype).tiny))
        return [self._words[tokens[i]] for i in (gains[0] - gains[1]).argsort(descending=True)[:BY_GRADIENT].tolist()]

    def _judged(self, words: list[str], held: Probe, label: int) -> list[FoundTrigger]:
        """The words that stand out on rows that the search did not see."""
        turned = [
            _gains((held.shares(model, ["", *words]).argmax(-1) == label).float().mean(1)).clamp(min=0).tolist()
            for model in (self.suspect, self.control)
        ]
        return [
            FoundTrigger(text=word, label=label, flipped=flipped, control=control, rows=len(held.rows))
            for word, flipped, control in zip(words, *turned, strict=True)
            if flipped - control >= STANDS_OUT
        ]


def _gains(shares: "Tensor") -> "Tensor":
    """What words add to the share without any, which comes first."""
    return shares[1:] - shares[0]
