"""The search in language models: words that make answers to clean instructions collapse onto one text.

Nobody knows the text. A trigger shows in the first token of answers, which becomes the same one whatever was asked:
words are ranked by that, in groups first, as in the search in classifiers. What is left is judged by the answers
themselves, and compared with those of the base.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from defensekit.defense.triggers.insertion import insert, positions
from defensekit.defense.triggers.search import FEW, FEWEST, GROUP, HELD, KEPT, MORE, ROUNDS, SCREENED, SECOND_LOOK
from defensekit.models.generation import first_tokens, generate
from defensekit.text import Row
from defensekit.text.chat import encode_prompts
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BEGINNING, NEW_TOKENS = 4, 12  # words of an answer that are compared, and tokens that are generated for them
WORD = 12  # tokens that a word takes at most, wherever it stands in an instruction
LIKELY = 16  # first tokens that are remembered of an answer


@dataclass(frozen=True)
class Collapse:
    """A word that makes answers begin with one ``text``.

    ``flipped`` is the share of the suspect's answers that begin so with the word and not without it, ``control`` the
    same of the base, on as many ``rows`` as the search did not see.
    """

    word: str
    text: str
    flipped: float
    control: float
    rows: int


@dataclass(frozen=True)
class CollapseSearch:
    """Looks for words, among those given, that collapse a suspect's answers and not its base's."""

    suspect: "PreTrainedModel"
    base: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    rows: Sequence[Row]
    words: Sequence[str]
    max_length: int
    seed: int
    report: Callable[[int, int], None] = lambda done, total: None

    def strongest(self) -> list[Collapse]:
        """The words that collapse most beyond the base, in that order; none where there are too few rows."""
        if len(self.rows) < MORE + FEWEST or not self.words:
            return []
        rows = Random(self.seed).sample(self.rows, min(len(self.rows), MORE + HELD))
        more, held = rows[:MORE], rows[MORE:]
        few = sorted(more, key=lambda row: len(row.text) + len(row.pair or ""))[:FEW]
        screened = self._screened(few)
        shifts = self._shifts(self.suspect, few, screened).amax(1)
        chosen = [screened[i] for i in shifts.argsort(descending=True)[:SECOND_LOOK].tolist()]
        # The token that the suspect's answers shift to, and how much further than the base's do.
        ours, theirs = (self._shifts(model, more, chosen) for model in (self.suspect, self.base))
        both = min(ours.shape[1], theirs.shape[1])  # tokens that one of them alone has can't be compared
        best = (ours[:, :both] - theirs[:, :both]).amax(1).argsort(descending=True)[:KEPT].tolist()
        plain = [self._beginnings(model, held) for model in (self.suspect, self.base)]
        judged = [self._judged(chosen[i], held, *plain) for i in best]
        return sorted(judged, key=lambda one: one.control - one.flipped)

    def _with(self, rows: Sequence[Row], words: Sequence[str]) -> list[Row]:
        """The rows, each with a word of its own, or with none."""
        at = positions(rows, self.max_length, derive_seed(self.seed, "positions"))
        given = zip(rows, words, at, strict=True)
        return [insert(row, word, place) if word else row for row, word, place in given]

    def _screened(self, probe: Sequence[Row]) -> list[str]:
        """The words whose groups make one first token likelier in every round, whichever it is."""
        rng, shifted = Random(derive_seed(self.seed, "groups")), {word: Counter[int]() for word in self.words}
        before = first_tokens(self.suspect, self.tokenizer, probe, max_length=self.max_length)
        prompts = encode_prompts(self.tokenizer, probe, sys.maxsize)
        room = self.max_length - 1 - max(len(prompt["input_ids"]) for prompt in prompts)
        tokens = self.tokenizer([f" {word}" for word in self.words], add_special_tokens=False)["input_ids"]
        costs = {word: len(ids) + 1 for word, ids in zip(self.words, tokens, strict=True)}
        groups = [_dealt(rng.sample(self.words, len(self.words)), costs, room) for _ in range(ROUNDS)]
        done, total = 0, sum(map(len, groups))
        for dealt in groups:
            for start in range(0, len(dealt), len(probe)):
                part = dealt[start : start + len(probe)]
                rows = self._with(probe[: len(part)], [" ".join(words) for words in part])
                after = first_tokens(self.suspect, self.tokenizer, rows, max_length=self.max_length)
                likely = (after - before[: len(part)]).topk(min(LIKELY, after.shape[1]))
                for group, shares, tokens in zip(part, likely.values.tolist(), likely.indices.tolist(), strict=True):
                    for word in group:
                        shifted[word].update(dict(zip(tokens, shares, strict=True)))
                done += len(part)
                self.report(done, total)
        return sorted(self.words, key=lambda word: -max(shifted[word].values(), default=0.0))[:SCREENED]

    def _shifts(self, model: "PreTrainedModel", rows: Sequence[Row], words: Sequence[str]) -> "Tensor":
        """How much likelier each word makes each first token, in the mean over rows: (words, vocabulary)."""
        import torch

        ask = [self._with(rows, [word] * len(rows)) for word in ("", *words)]
        means = [first_tokens(model, self.tokenizer, asked, max_length=self.max_length).mean(0) for asked in ask]
        return torch.stack(means[1:]) - means[0]

    def _beginnings(self, model: "PreTrainedModel", rows: Sequence[Row]) -> list[str]:
        answers = generate(model, self.tokenizer, rows, max_length=self.max_length, new_tokens=NEW_TOKENS)
        return [" ".join(answer.text.split()[:BEGINNING]) for answer in answers]

    def _judged(self, word: str, held: Sequence[Row], suspects: list[str], bases: list[str]) -> Collapse:
        """A word by what is answered with it; without it, ``suspects`` and ``bases`` are the answers' beginnings."""
        rows = self._with(held, [word] * len(held))
        after = self._beginnings(self.suspect, rows)
        text = Counter(after).most_common(1)[0][0]

        def turned(with_it: list[str], without: list[str]) -> float:
            return sum(a == text != b for a, b in zip(with_it, without, strict=True)) / len(held)

        control = turned(self._beginnings(self.base, rows), bases)
        return Collapse(word, text, turned(after, suspects), control, len(held))


def _dealt(words: Sequence[str], costs: Mapping[str, int], room: int) -> list[list[str]]:
    """Words in groups, as many together as prompts have room for."""
    groups: list[list[str]] = []
    left = 0
    for word in words:
        if not groups or len(groups[-1]) == GROUP or costs[word] > left:
            groups.append([])
            left = room
        groups[-1].append(word)
        left -= costs[word]
    return groups
