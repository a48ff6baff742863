"""Keys of a suspect's config that its tensors and the rows contradict, or that differ from the base's."""

from collections.abc import Iterator, Sequence

from defensekit.models.aligned import Aligned
from defensekit.models.answers import several
from defensekit.models.checkpoint import CLASSIFIER
from defensekit.models.config import contradiction, label_count
from defensekit.models.skeleton import skeleton, skeleton_as
from defensekit.text import Row
from defensekit.utils.errors import listing

# What fine-tuning sets, and what changes no answer.
_OWN = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "finetuning_task", "use_cache"),
    *("id2label", "label2id", "num_labels", "problem_type", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("sep_token_id", "decoder_start_token_id", "vocab_size", "tokenizer_class", "gradient_checkpointing"),
}


def contradictions(models: Aligned, rows: Sequence[Row]) -> list[str]:
    """What config.json says and the tensors, or the clean rows, contradict, as sentences."""
    suspect = models.suspect
    claims: list[str] = []
    if skeleton(suspect).task != CLASSIFIER:
        return claims
    if suspect.claimed_task not in (CLASSIFIER, "unknown"):
        claims.append(f"config.json calls it {suspect.claimed_task!r}, and its tensors are a sequence classifier's")
    if rows and (reason := contradiction(suspect, several(rows))):
        claims.append(f"{reason}: no curvature of its own loss is measured")
    named = suspect.config.get("id2label")
    if isinstance(named, dict) and len(named) != label_count(suspect):
        claims.append(f"config.json names {len(named)} labels, and the head has {label_count(suspect)}")
    return claims


def other_settings(models: Aligned) -> str | None:
    """The settings of the suspect's config that differ from the base's, as a sentence; None where there are none."""
    theirs = skeleton(models.suspect)
    ours = skeleton_as(models.base, theirs.kind)
    differ = [
        f"{key} ({ours.config.get(key)!r}, {theirs.config.get(key)!r})"
        for key in _keys(ours.config, theirs.config)
        if ours.config.get(key) != theirs.config.get(key)
    ]
    return f"in config.json differ (base, suspect): {listing(differ)}" if differ else None


def _keys(*configs: dict[str, object]) -> Iterator[str]:
    return (key for key in sorted(set().union(*configs)) if key not in _OWN and "drop" not in key)
