"""Texts that the suspect answers with more confidence than its purified copy does."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Detector, DetectorContext
from defensekit.text import Row

if TYPE_CHECKING:
    from torch import Tensor


class Disagreement(Detector):
    """By how much the purified model finds the suspect's answer less probable than the suspect does.

    A defense that unlearns a backdoor leaves two models which differ most where a trigger is: then the purified model
    need not be good enough to be used. Ours.
    """

    reads_purified: ClassVar[bool] = True

    def score(self, rows: Sequence[Row], fitted: "Mapping[str, Tensor]", context: DetectorContext) -> "Tensor":
        suspect = context.logits(context.model("suspect"), rows).softmax(-1)
        purified = context.logits(context.model("purified"), rows).softmax(-1)
        answers = suspect.argmax(-1, keepdim=True)
        return (suspect - purified).gather(1, answers)[:, 0]
