"""STRIP: the entropy of the answers to a text mixed with clean ones, low where a trigger decides them."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING

from defensekit.api import Detector, DetectorContext, Field
from defensekit.text import Row

if TYPE_CHECKING:
    from torch import Tensor


class Strip(Detector):
    """How little entropy the suspect's answers have when words of the text are replaced by those of clean texts.

    STRIP (Gao et al., ACSAC 2019, arXiv 1902.06531) for images; its authors' variant for text replaces words (Gao et
    al., "Design and Evaluation of a Multi-Domain Trojan Detection Method on Deep Neural Networks", arXiv 1911.10312).
    The score is the negative mean entropy of the answers to the mixtures, in nats. That their words are taken from a
    held-out text by tf-idf is as we recall it; ours are drawn evenly.

    In every copy a share of the words, at random places, gives way to words of one random clean row; at least one word
    is replaced. What is drawn for a text depends on the seed and that text alone. A text costs as many passes as there
    are copies.
    """

    copies: int = Field(16, ge=1, le=1000, description="mixtures that the suspect is asked about, for each text")
    replaced: float = Field(0.5, gt=0, le=1, description="the share of words that are replaced")

    def score(self, rows: Sequence[Row], fitted: "Mapping[str, Tensor]", context: DetectorContext) -> "Tensor":
        mixed = [mixture for row in rows for mixture in self._mixtures(row, context)]
        answers = context.logits(context.model("suspect"), mixed).double().log_softmax(-1)
        entropies = -(answers.exp() * answers).sum(-1)
        return -entropies.reshape(len(rows), self.copies).mean(1)

    def _mixtures(self, row: Row, context: DetectorContext) -> list[Row]:
        rng = Random(f"{context.seed} {row.text!r} {row.pair!r}")
        others = [rng.choice(context.rows) for _ in range(self.copies)]
        pairs = [None if row.pair is None else self._mixed(row.pair, other.pair or "", rng) for other in others]
        return [
            Row(i, self._mixed(row.text, other.text, rng), row.label, pair)
            for i, (other, pair) in enumerate(zip(others, pairs, strict=True))
        ]

    def _mixed(self, text: str, other: str, rng: Random) -> str:
        words, donors = text.split(), other.split()
        if not words or not donors:
            return text
        for place in rng.sample(range(len(words)), max(1, round(self.replaced * len(words)))):
            words[place] = rng.choice(donors)
        return " ".join(words)
