"""How far every tensor drifted, by layer and kind of tensor."""

import re
from collections.abc import Callable, Sequence
from math import isfinite
from statistics import median
from typing import TYPE_CHECKING

from defensekit.models.aligned import Aligned
from defensekit.models.names import EMBEDDING, LAYER
from defensekit.scanner.result import TensorDrift
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    from torch import Tensor

# The first pattern that matches a tensor's name gives its kind. Names are those of transformers' architectures.
_KINDS = (
    # T5 and MPNet add a learnt bias by distance to the scores of attention, XLNet one by head.
    (re.compile(r"\.bias$|_bias(\.weight)?$"), "bias"),
    (re.compile(r"(^|\.)pooler\."), "pooler"),
    (
        re.compile(
            r"(^|\.)(lm_head|classifier|pre_classifier|score|cls|qa_outputs|embed_out|classification_head|logits_proj|"
            r"sequence_summary|head)\."
        ),
        "head",
    ),
    (re.compile(r"(norm|ln|ln_?\w{1,2}|norm_emb|norm_?embedding|norm\d\.\d+)\.weight$", re.IGNORECASE), "norm"),
    (re.compile(r"c_attn|qkv|query_key_value|self\.in_proj\."), "attention q, k, v"),
    (re.compile(r"(^|\.|_)(q_proj|q_lin|q_head|query|query_proj|in_proj_q)\.|[aA]tt(entio)?n\.q(\.|$)"), "attention q"),
    # Positions have keys of their own in XLNet, Funnel and DeBERTa.
    (
        re.compile(r"(^|\.|_)(k_proj|k_lin|k_head|key|key_proj|pos_proj|r_kernel)(\.|$)|[aA]tt(entio)?n\.[kr](\.|$)"),
        "attention k",
    ),
    (re.compile(r"(^|\.|_)(v_proj|v_lin|v_head|value|value_proj)\.|[aA]tt(entio)?n\.v(\.|$)"), "attention v"),
    (
        re.compile(
            r"(o_proj|out_lin|out_proj|attention\.output\.dense|attn\.c_proj|attn\.dense|attn\.Wo|attention\.dense|"
            r"attention\.post_proj)\.|[aA]tt(entio)?n\.o(\.|$)"
        ),
        "attention o",
    ),
    (EMBEDDING, "embedding"),
    (re.compile(r"(^|\.)mask_emb$"), "embedding"),
)

_OF_OTHERS = re.compile(r"position|token_type|wpe|project|seg_embed|rel_embed|mask_emb|mapping_in")

Look = Callable[[str, int, "Tensor", "Tensor"], None]


def kind_of(name: str, dimensions: int) -> str:
    """The kind of a tensor, by its name; any other matrix of a layer belongs to its feed-forward part."""
    for pattern, kind in _KINDS:
        if pattern.search(name):
            return kind
    if dimensions < 2:
        return "norm"
    return "feed-forward" if LAYER.match(name) else "other"


def is_of_tokens(name: str) -> bool:
    """Whether a tensor is an embedding, and not one of positions or of kinds of text."""
    return kind_of(name, 2) == "embedding" and not _OF_OTHERS.search(name)


def layer_number(name: str) -> int | None:
    """The number of a tensor's layer, None outside of any."""
    match = LAYER.match(name)
    return int(match[2]) if match else None


def measure(models: Aligned, looks: "Sequence[Look]", report: Callable[[int, int], None]) -> list[TensorDrift]:
    """Measure the drift of every tensor that both models have, in one pass over the files.

    Args:
        models: base and suspect.
        looks: called with every block, (name, first row, base, suspect) in float32, so that nothing is read twice.
        report: called with the number of tensors done, and of all.

    Raises:
        DefenseKitError: a weight is NaN or infinite.
    """
    drifts = []
    for done, name in enumerate(models.compared):
        drift, base, moved, count, matrix = 0.0, 0.0, 0, 0, 1
        for start, ours, theirs in models.blocks(name):
            delta = theirs - ours
            drift += float(delta.double().square().sum())
            base += float(ours.double().square().sum())
            moved += int((delta != 0).sum())
            count += delta.numel()
            matrix = ours.dim()
            if not isfinite(drift + base):
                raise DefenseKitError(f"{name}: NaN or infinity")
            for look in looks:
                look(name, start, ours, theirs)
        drifts.append(
            TensorDrift(
                name=name,
                kind=kind_of(name, matrix),
                layer=layer_number(name),
                dimensions=count,
                moved=moved,
                drift=drift**0.5,
                base=base**0.5,
            )
        )
        report(done + 1, len(models.compared))
    return drifts


# A fine-tune changes a matrix by some percent of its norm; matrices of independent trainings differ by over 100 %.
OTHER_BASE = 0.5


def is_another_base(tensors: list[TensorDrift]) -> bool:
    """Whether the suspect drifted so far everywhere that it did not come from this base."""
    return inner_drift(tensors) > OTHER_BASE


def inner_drift(tensors: list[TensorDrift]) -> float:
    """The median of |suspect - base| / |base| over the matrices of layers; 0 where there are none."""
    inner = [tensor.relative for tensor in tensors if tensor.kind.startswith(("attention", "feed"))]
    return median(inner) if inner else 0.0
