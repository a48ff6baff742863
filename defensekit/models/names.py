"""Names of tensors: which name the same one, which are buffers, and what belongs to which layer."""

import re
from collections.abc import Iterable

from defensekit.models.prefixes import agreeing_prefixes

# Tables that older files carry beside the weights; GPT-2's `attn.bias` is its causal mask.
BUFFERS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|attn(\.attention)?\.(masked_)?bias|rotary_emb\.inv_freq|num_batches_tracked)$"
)
# Put in front of names by torch.compile and by torch's wrappers for several devices.
WRAPPED = re.compile(r"^module\.|(?<![^.])_orig_mod\.|(?<![^.])_fsdp_wrapped_module\.")
FLOATS = ("F64", "F32", "F16", "BF16")
LAYER = re.compile(r"^(.*?\.)??(\d+)\.")
EMBEDDING = re.compile(r"embed(?!_out\.)|(^|\.)w[tp]e\.|(^|\.)shared\.weight$")


def modern(name: str) -> str:
    """A tensor's name with LayerNorm's present names for its weight and bias."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[m[1]], name)


def same_tensor(names: Iterable[str]) -> list[str]:
    """Two names, if any, that are one tensor to transformers.

    It takes a name with and without the prefix of the model (one part or two), and LayerNorm's old names.
    """
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(modern(name), name)) != name:
            return [other, name]
    for name in seen:
        parts = name.split(".", 2)
        for depth in range(1, len(parts)):
            shorter = ".".join(parts[depth:])
            if not parts[depth - 1].isdigit() and shorter in seen:
                return [seen[shorter], seen[name]]
    return []


def layer_of(name: str) -> str:
    """The layer a tensor belongs to: its name up to the layer's number, or else its first part (``embeddings``)."""
    match = LAYER.match(name)
    return match[0].rstrip(".") if match else name.partition(".")[0]


def is_embedding(name: str) -> bool:
    """Whether a tensor belongs to the embeddings of tokens, positions or segments, by its name in transformers.

    Norms and projections of the embeddings count as well.
    """
    return EMBEDDING.search(name) is not None


def _strip(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Names without the prefix (where they have it), mapped to the names as given."""
    return {modern(name).removeprefix(prefix): name for name in names}


def align(ours: Iterable[str], theirs: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Both sets of names by common names: those prefixes are removed with which most names agree."""
    ours, theirs = list(ours), list(theirs)
    modern_ours, modern_theirs = set(map(modern, ours)), set(map(modern, theirs))
    if (len(modern_ours), len(modern_theirs)) != (len(ours), len(theirs)):
        return {}, {}  # two names are one
    mine, other = agreeing_prefixes(modern_ours, modern_theirs)
    return _strip(ours, mine), _strip(theirs, other)
