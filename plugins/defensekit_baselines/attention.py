"""The attention of the token that a classifier reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def from_the_read_token(attentions: "Sequence[Tensor]", mask: "Tensor") -> "Tensor":
    """The attention over the tokens of a row from the token that the classifier reads.

    That is the first token, as for BERT; or the last one of a row, for models that read from left to right, where no
    token attends to a later one.

    Args:
        attentions: of every layer, (rows, heads, tokens, tokens).
        mask: (rows, tokens), 0 where a token is padding.

    Returns:
        (layers, rows, heads, tokens).
    """
    import torch

    real = mask.bool()
    both = (real[:, None, :, None] & real[:, None, None, :]).triu(1)
    position = torch.zeros(len(mask), dtype=torch.long, device=mask.device)
    if not any(bool((layer.detach() * both).any()) for layer in attentions):
        position = (torch.arange(mask.shape[1], device=mask.device) * real).argmax(1)
    rows = torch.arange(len(mask), device=mask.device)
    return torch.stack([layer[rows, :, position] for layer in attentions])
