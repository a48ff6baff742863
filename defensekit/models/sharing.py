"""Tensors that files hold under several names, and the loaded model once: tied embeddings and outputs."""

from collections import Counter

from defensekit.models.checkpoint import Checkpoint
from defensekit.models.names import FLOATS, LAYER, align, is_embedding
from defensekit.models.skeleton import skeleton
from defensekit.utils.errors import UsageError, listing


def shared_names(checkpoint: Checkpoint) -> tuple[tuple[str, ...], ...]:
    """The names of every parameter that the loaded model calls by several; none without asking where none can be.

    Raises:
        UsageError: transformers builds no model of the folder.
    """
    shapes = {
        name: entry.shape
        for name, entry in checkpoint.tensors.items()
        if entry.dtype in FLOATS and entry.shape and not LAYER.match(name)
    }
    rows = {shape[0] for name, shape in shapes.items() if len(shape) == 2 and is_embedding(name)}
    alike = Counter(shape for shape in shapes.values() if shape[0] in rows)
    return skeleton(checkpoint).shared if any(count > 1 for count in alike.values()) else ()


def drop_aliases(
    base: Checkpoint, suspect: Checkpoint, in_base: dict[str, str], in_suspect: dict[str, str]
) -> dict[str, str]:
    """Leave one name of every tensor that the loaded model shares, the same in both files where they allow it.

    Args:
        base: the base.
        suspect: the suspect, whose loaded model says what is shared.
        in_base: the base's common names, mapped to the names in its file; aliases are taken out.
        in_suspect: likewise the suspect's.

    Returns:
        The suspect's other names in its file, mapped to the common name that is left.

    Raises:
        UsageError: a file holds different values for one tensor.
    """
    aliases: dict[str, str] = {}
    for group in shared_names(suspect) or shared_names(base):
        ours, theirs = _held(base, group, in_base), _held(suspect, group, in_suspect)
        if not theirs:
            continue
        kept = next((name for name in theirs if name in ours), theirs[0])
        aliases |= {in_suspect.pop(name): kept for name in theirs if name != kept}
        own = [in_base.pop(name) for name in ours]
        if own:
            in_base[kept] = own[0]
    return aliases


def _held(checkpoint: Checkpoint, group: tuple[str, ...], in_file: dict[str, str]) -> list[str]:
    """The common names, in the model's order, under which a file holds a tensor.

    Raises:
        UsageError: their values differ.
    """
    in_model, stored = align(group, checkpoint.tensors)
    own = {name: stored[common] for common, name in in_model.items() if common in stored}
    common = {name: called for called, name in in_file.items()}
    held = [own[name] for name in group if own.get(name) in common]
    for name in held[1:]:
        if not checkpoint.tensor(name).equal(checkpoint.tensor(held[0])):
            raise UsageError(
                f"{checkpoint.folder}: {listing((held[0], name))} are one tensor by config.json, and differ in the "
                "file: which of them is used depends on the library's version. Set `tie_word_embeddings` to false if "
                "they are two, or remove one"
            )
    return [common[name] for name in held]
