"""What a classifier's logits say: which of its labels, or, where rows have any number of labels, of each if it applies.

Answers have numbers: a label's, and with ``several`` labels to a row also one that is as many beyond it as there are
labels, for a label that does not apply. A backdoor may want either.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from defensekit.text import Row

if TYPE_CHECKING:
    from torch import Tensor


def several(rows: Sequence[Row]) -> bool:
    """Whether rows have any number of labels, and not one each."""
    return any(row.task == "multi-label" for row in rows[:1])


def names(labels: Sequence[str], several: bool) -> list[str]:
    """What answers are called, by their numbers."""
    return [*labels, *(f"not {label}" for label in labels)] if several else [*labels]


def shares(logits: "Tensor", several: bool) -> "Tensor":
    """The probability of every answer, (..., answers)."""
    import torch

    return torch.cat([logits.sigmoid(), (-logits).sigmoid()], -1) if several else logits.softmax(-1)


def given(shares: "Tensor", several: bool) -> "Tensor":
    """Whether each answer is given, (..., answers), bool: the likeliest one, or what is likelier than not."""
    import torch

    if not several:
        return torch.nn.functional.one_hot(shares.argmax(-1), shares.shape[-1]).bool()
    applies = shares.chunk(2, -1)[0] > 0.5
    return torch.cat([applies, ~applies], -1)
