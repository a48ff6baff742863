"""What a tensor is for, by its name in transformers: what scorers, selectors and steps are told of it."""

import re
from collections.abc import Sequence
from typing import Literal

from defensekit.models.names import EMBEDDING

Role = Literal["embedding", "attention", "feed-forward", "norm", "head", "other"]

# The first that fits: a norm within attention is a norm.
ROLES: dict[Role, re.Pattern[str]] = {
    "norm": re.compile(
        r"(?i)(^|[._])(layer_?|batch_?|rms_?|ln_?)?norm(\d|_\w+)?\.|layernorm\w*\.|(^|[._])ln(_\w+|\d)?\."
    ),
    "head": re.compile(
        r"(^|\.)(cls|lm_head|embed_out|score|classifier|pre_classifier|classification_head|qa_outputs|sequence_summary"
        r"|logits_proj|vocab_\w+|pred_layer|pooler|head|(generator|discriminator)_\w+)\."
    ),
    "attention": re.compile(r"(?i)(^|[._])((self_|encoder_|rel_)?attn|\w*attentions?(_bias)?|query|key|value)\."),
    "feed-forward": re.compile(
        r"(?i)(^|\.)(mlp|ffn\w*|ff|fc[12]|fc_(in|out)|intermediate|output|DenseReluDense|feed_?forward|experts|router"
        r"|block_sparse_moe)\."
    ),
    "embedding": EMBEDDING,
}


def role_of(name: str) -> Role:
    """What a tensor is part of; ``other`` where its name does not say it."""
    return next((role for role, pattern in ROLES.items() if pattern.search(name)), "other")


def block_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to, counted from 0; None where it belongs to none."""
    numbers = re.findall(r"(?:^|\.)(\d+)\.", name)
    return int(numbers[0]) if numbers else None


# GPT-2 stores its matrices as (inputs, outputs); GPT-Neo and others give theirs, as (outputs, inputs), the same names.
_WIDENS = re.compile(r"\b(attn\.c_attn|mlp\.c_fc)\.weight$")
_NARROWS = re.compile(r"\b(attn|mlp)\.c_proj\.weight$")


def output_axis_of(name: str, shape: Sequence[int]) -> int:
    """The axis of a weight along which its outputs lie; of an embedding table, 0, that of the tokens.

    What GPT-2's names and the shape leave open, the square matrix behind its attention, is taken for GPT-2's.
    """
    if len(shape) != 2:
        return 0
    return int(
        bool(_WIDENS.search(name) and shape[0] < shape[1]) or bool(_NARROWS.search(name) and shape[0] >= shape[1])
    )
