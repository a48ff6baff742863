"""Whether a comparison saw all of the model that transformers loads."""

from collections.abc import Iterable

from defensekit.models.checkpoint import CLASSIFIER, Checkpoint
from defensekit.models.config import label_count
from defensekit.models.names import BUFFERS, FLOATS
from defensekit.models.skeleton import skeleton, skeleton_as
from defensekit.utils.errors import UsageError, listing


def not_compared(base: Checkpoint, suspect: Checkpoint, beside: Iterable[str]) -> list[str]:
    """What the suspect's loaded model has beyond what was compared and its head, a sentence each.

    The head is what transformers finds missing when it loads the base as the suspect's class: the suspect has no say.

    Args:
        base: the base.
        suspect: the suspect.
        beside: tensors in the suspect's files that are not compared, by their names there.

    Raises:
        UsageError: transformers makes no model of one of them.
    """
    model, reasons = skeleton(suspect), not_loaded(suspect)
    floats = _floats(suspect)
    untuned = skeleton_as(base, model.kind, label_count(suspect) if model.task == CLASSIFIER else None)
    head = untuned.missing | untuned.misshapen
    others = [name for name in beside if name not in model.unexpected and not any(_same(name, one) for one in head)]
    # Tables are left out of the comparison, unless they are weights to this kind of model.
    others += [name for name in floats & model.floats if BUFFERS.search(name)]
    if others:
        reasons.append(f"the base has no counterpart of {listing(sorted(others), 3)}, which is no head")
    return reasons


def not_loaded(suspect: Checkpoint) -> list[str]:
    """In what the files and the model that transformers loads of them differ, a sentence each.

    Raises:
        UsageError: transformers makes no model of them.
    """
    model, reasons = skeleton(suspect), []
    if model.missing:
        reasons.append(
            f"no tensor of its files is {listing(sorted(model.missing), 3)}: transformers draws it at random"
        )
    if model.misshapen:
        reasons.append(
            f"config.json asks for another shape than the files have of {listing(sorted(model.misshapen), 3)}"
        )
    if unused := sorted(name for name in model.unexpected & _floats(suspect) if not BUFFERS.search(name)):
        reasons.append(f"transformers does not load {listing(unused, 3)}")
    return reasons


def _floats(checkpoint: Checkpoint) -> set[str]:
    return {name for name, entry in checkpoint.tensors.items() if entry.dtype in FLOATS}


def check_coverage(base: Checkpoint, suspect: Checkpoint, beside: Iterable[str]) -> None:
    """Refuse a suspect of which something is neither compared nor head.

    Raises:
        UsageError: says what; arguments are those of `not_compared`.
    """
    if reasons := not_compared(base, suspect, beside):
        raise UsageError(f"{suspect.folder} does not fit its base {base.folder}: {'; '.join(reasons)}")


def _same(one: str, other: str) -> bool:
    """Whether two names are one, but for a prefix of the model."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")
