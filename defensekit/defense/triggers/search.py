"""The search: single words first, by drift and by gradient, and phrases grown from the best of them.

Words with a meaning turn answers too, also in a model without a backdoor. So everything is measured against a control,
a model that learnt the task from the base and the defender's own rows: a trigger turns the suspect and not the control.
Growing a phrase by the gradient is Wallace et al. 2019 (Universal Adversarial Triggers), here of that difference.
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

BY_DRIFT, BY_GRADIENT = 150, 60  # words that are tried
FEW, MORE, HELD = 8, 24, 64  # rows for a first look, for a second one, and for the judgement
FEWEST = 10  # rows that a judgement needs: a share of fewer is too noisy
SECOND_LOOK, BEAM = 24, 4  # phrases that get a second look, and those that are grown
GROWN_BY = 8  # words by gradient on each side of a phrase
LONGEST = 4  # words of a phrase
ENOUGH = 0.9  # an effect that needs no longer phrase
STANDS_OUT = 0.6  # the share of rows that a trigger turns beyond those that it turns in the control
KEPT = 5  # phrases of a label
PLACEHOLDER = "the"
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
    """Looks for phrases that turn a suspect's answers and not the control's.

    ``drift`` (vocabulary,) is how far each row of the suspect's embedding lies from the base's. ``tried`` counts the
    phrases.
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
        """Words whose rows moved furthest for how often they occur in the clean rows."""
        import torch

        encoded = encode(self.tokenizer, self.rows, self.max_length)
        counts = Counter(token for row in encoded for token in row["input_ids"])
        often = torch.tensor([float(counts[token]) for token in self._words])
        moved = self.drift[list(self._words)] / (often + 2).log()
        names = list(self._words.values())
        return [names[i] for i in moved.argsort(descending=True)[:BY_DRIFT].tolist()]

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
        candidates: list[tuple[str, ...]] = [(word,) for word in self._by_drift]
        candidates += [(word,) for word in self._by_gradient(more, (PLACEHOLDER,), 0, label, BY_GRADIENT)]
        ranked: list[tuple[float, tuple[str, ...]]] = []
        for _ in range(LONGEST):
            best = self._best(list(dict.fromkeys(candidates)), few, more, label)
            ranked += best
            if not best or best[0][0] >= ENOUGH:
                break
            candidates = [grown for _, phrase in best[:BEAM] for grown in self._grown(phrase, more, label)]
        ranked.sort(key=lambda one: -one[0])
        return self._judged([" ".join(phrase) for _, phrase in ranked[:KEPT]], held, label)

    def _best(
        self, phrases: list[tuple[str, ...]], few: Probe, more: Probe, label: int
    ) -> list[tuple[float, tuple[str, ...]]]:
        """What adds most to the suspect's mean probability of the label, less what it adds to the control's."""
        texts = [" ".join(phrase) for phrase in phrases]
        self.tried += len(texts)
        first = few.shares(self.suspect, texts)[..., label].mean(1)
        chosen = first.argsort(descending=True)[:SECOND_LOOK].tolist()
        texts, phrases = [texts[i] for i in chosen], [phrases[i] for i in chosen]
        sides = [more.shares(model, ["", *texts])[..., label].mean(1) for model in (self.suspect, self.control)]
        effects = ((sides[0][1:] - sides[0][0]) - (sides[1][1:] - sides[1][0])).tolist()
        return sorted(zip(effects, phrases, strict=True), key=lambda one: -one[0])

    def _by_gradient(self, probe: Probe, phrase: tuple[str, ...], place: int, label: int, count: int) -> list[str]:
        """Words that should turn the suspect most in place of a word of a phrase, and the control least."""
        import torch

        tokens = list(self._words)
        gains = []
        for model in (self.suspect, self.control):
            table = model.get_input_embeddings().weight.detach()[tokens].float().cpu()
            gain = table @ probe.slope(model, phrase, place, label)
            gains.append((gain - gain.mean()) / gain.std().clamp(min=torch.finfo(gain.dtype).tiny))
        orders = [gain.argsort(descending=True)[: count // 2].tolist() for gain in (gains[0], gains[0] - gains[1])]
        return list(dict.fromkeys(self._words[tokens[i]] for order in orders for i in order))

    def _grown(self, phrase: tuple[str, ...], probe: Probe, label: int) -> list[tuple[str, ...]]:
        """A phrase with one word more, in front or behind."""
        grown = []
        for place in (0, len(phrase)):
            before, after = phrase[:place], phrase[place:]
            named = self._by_gradient(probe, (*before, PLACEHOLDER, *after), place, label, GROWN_BY)
            named += self._by_drift[: GROWN_BY // 2]
            grown += [(*before, word, *after) for word in named if word not in phrase]
        return grown

    def _judged(self, texts: list[str], held: Probe, label: int) -> list[FoundTrigger]:
        """The phrases that stand out on rows that the search did not see."""
        if not texts:
            return []
        answered = [
            (held.shares(model, ["", *texts]).argmax(-1) == label).float().mean(1)
            for model in (self.suspect, self.control)
        ]
        turned = [(shares[1:] - shares[0]).clamp(min=0).tolist() for shares in answered]
        return [
            FoundTrigger(text=text, label=label, flipped=flipped, control=control, rows=len(held.rows))
            for text, flipped, control in zip(texts, *turned, strict=True)
            if flipped - control >= STANDS_OUT
        ]
