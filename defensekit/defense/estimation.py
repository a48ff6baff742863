"""Statistics per parameter, measured on clean rows."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from defensekit import training
from defensekit.components import (
    Estimate,
    Estimator,
    EstimatorContext,
    call_component,
    component_error,
    offering,
    refuse_unsuited,
)
from defensekit.gradients import cross_entropy
from defensekit.models import padding
from defensekit.models.answers import several
from defensekit.models.causal import token_losses
from defensekit.models.checkpoint import CAUSAL
from defensekit.models.devices import placed
from defensekit.models.loading import load
from defensekit.models.pair import Pair
from defensekit.models.skeleton import task_of
from defensekit.text import Row, encode
from defensekit.utils.errors import UsageError, listing
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


Report = Callable[[int, int], None]


def estimate(
    pair: Pair, estimator: Estimator, rows: Sequence[Row], *, max_length: int, seed: int, report: Report
) -> Estimate:
    """Measure statistics on clean rows.

    Returns:
        Statistics of the tensors in scope, by the pair's names, in float32 on the CPU, and facts about them.

    Raises:
        UsageError: the suspect is a causal language model, or rows have lists of labels, and the estimator measures
            classifiers of one label alone.
        DefenseKitError: the estimator gave nothing, a tensor that the model does not have, another shape, or NaN.
    """
    import torch

    causal = task_of(pair.suspect) == CAUSAL
    if causal and not estimator.any_loss:
        name = type(estimator).__name__
        raise UsageError(f"the estimator {name} measures classifiers alone, and the suspect is a {CAUSAL}")
    refuse_unsuited(estimator, rows)
    suspect, tokenizer = load(pair.suspect.folder, "suspect")
    parameters = [name for name, _ in suspect.named_parameters()]
    encoded = encode(tokenizer, rows, max_length, suspect)  # a token that it does not have is reported, with its row
    if not causal:
        padding.settle_gradients(suspect, tokenizer, encoded)
    del suspect
    loss = token_losses if causal else cross_entropy if several(rows) else None
    own = derive_seed(seed, "estimator")
    model = offering(estimator, partial(other_model, pair), "suspect", "base")
    context = EstimatorContext(model, tokenizer, rows, max_length, own, report, loss)
    with training.forked_random(derive_seed(seed, "global")):
        result = call_component(estimator, estimator.estimate, context)
    names = pair.named_like_the_pair(parameters)
    statistics: dict[str, dict[str, Tensor]] = {}
    facts: dict[str, Any] = {"rows": len(rows), **result.facts}
    if note := padding.note(tokenizer):
        facts["note"] = note
    for statistic in sorted(estimator.provides):
        measured = result.statistics.get(statistic, {})
        if unknown := sorted(measured.keys() - set(parameters)):
            raise component_error(
                estimator, f"gave {statistic!r} for {listing(unknown, 3)}, which the model does not have"
            )
        tensors = {name: measured[own].detach().float().cpu() for name, own in names.items() if own in measured}
        if not tensors:
            raise component_error(estimator, f"provides {statistic!r}, but gave none for any tensor in scope")
        for name, tensor in tensors.items():
            if tensor.shape != pair.block(name)[1].shape or not bool(torch.isfinite(tensor).all()):
                what = f"gave a {statistic} of {name} that has another shape than the weight, or is not finite"
                raise component_error(estimator, what)
        statistics[statistic] = tensors
        zero = sum(int((tensor == 0).sum()) for tensor in tensors.values())
        facts[f"zero_{statistic}"] = zero / sum(tensor.numel() for tensor in tensors.values())
    return Estimate(statistics, facts)


def other_model(pair: Pair, which: "Literal['suspect', 'base'] | Path") -> "PreTrainedModel":
    """Load the suspect, the base's weights under the suspect's head, or another model like the suspect.

    Args:
        pair: base and suspect.
        which: one of the two, or the folder of another model.

    Returns:
        The model, on the device.

    Raises:
        UsageError: the other model has tensors of other names or shapes, or other labels.
    """
    import torch

    loaded, _ = load(pair.suspect.folder, which if isinstance(which, str) else "suspect")
    if which == "base":
        weights = dict(loaded.named_parameters())
        with torch.no_grad():
            for name, own in pair.named_like_the_pair(weights).items():
                weights[own].copy_(pair.block(name)[0])
    elif isinstance(which, Path):
        expected, loaded = loaded, load(which, "another model")[0]
        shapes = [{name: list(p.shape) for name, p in model.named_parameters()} for model in (expected, loaded)]
        for name in sorted(shapes[0].keys() | shapes[1].keys()):
            ours, theirs = (own_shapes.get(name, "nothing") for own_shapes in shapes)
            if ours != theirs:
                raise UsageError(f"{which} is another kind of model: {name} is {theirs}, the suspect's is {ours}")
        labels = [list(model.config.id2label.values()) for model in (expected, loaded)]
        if labels[0] != labels[1]:
            raise UsageError(f"{which} has the labels {listing(labels[1])}, the suspect has {listing(labels[0])}")
    return placed(loaded)
