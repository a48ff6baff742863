"""ONION as a detector: the most suspicious word of a text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Detector, DetectorContext
from defensekit.text import Row
from defensekit_baselines.onion import suspicions

if TYPE_CHECKING:
    from torch import Tensor


class Suspicion(Detector):
    """The greatest suspicion of a word: by how much a text's perplexity falls without it, as ONION computes it.

    ONION (Qi et al., EMNLP 2021, arXiv 2011.10369) takes such words out; see the sanitizer of the same name. A text
    without two words that are read has a score of 0.
    """

    reads_with_language_model: ClassVar[bool] = True

    def score(self, rows: Sequence[Row], fitted: "Mapping[str, Tensor]", context: DetectorContext) -> list[float]:
        texts = [text for row in rows for text in (row.text, row.pair or "")]
        found = suspicions(texts, context)
        both = (first + second for first, second in zip(found[::2], found[1::2], strict=True))
        return [max((one for one in words if one is not None), default=0.0) for words in both]
