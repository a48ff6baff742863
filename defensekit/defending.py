"""What a defense does: measure statistics on clean rows, select dimensions, purify. Whoever calls it, run or hand.

Nothing here is given anything of an attack: a pair of models, clean rows, and components.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from defensekit import checkpoint, training
from defensekit.causal import token_losses
from defensekit.checkpoint import CAUSAL, Checkpoint
from defensekit.components import (
    Estimate,
    Estimator,
    EstimatorContext,
    ModelStep,
    ModelStepContext,
    Purifier,
    WeightStep,
    blame,
    fault,
)
from defensekit.errors import UsageError, listing
from defensekit.files import data_digest
from defensekit.pair import Pair, align, check_loaded
from defensekit.placing import placed
from defensekit.rewriting import rewrite
from defensekit.scoring import TensorView, anything, slices, versions
from defensekit.selecting import Selection
from defensekit.text import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Report = Callable[[int, int], None]


@lru_cache(4096)
def derive_seed(seed: int, *purpose: str) -> int:
    """A seed of its own for every purpose, so that the attacker's and the defender's draws are independent."""
    return int(data_digest([seed, *purpose])[:8], 16) & 0x7FFFFFFF


def load(
    folder: Path, called: str, labels: tuple[str, ...] | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model and its tokenizer, held against its file, under a neutral name instead of its path."""
    tokenizer = checkpoint.load_tokenizer(folder)
    model = checkpoint.load_model(folder, labels)
    check_loaded(model, Checkpoint(folder))
    if labels is None and Checkpoint(folder).task == CAUSAL:
        tokenizer.padding_side = "right"  # in front of a text it would move every token to another position
    return model, neutral(model, tokenizer, called)


def neutral(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", called: str) -> "PreTrainedTokenizerBase":
    """Take the folder out of the names, so that nothing beside it is reached through them by mistake."""
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config._name_or_path = model.name_or_path = called
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = called
    return tokenizer


def estimate(
    pair: Pair, estimator: Estimator, rows: Sequence[Row], *, max_length: int, seed: int, report: Report
) -> Estimate:
    """Statistics on clean rows: for the tensors in scope, by the pair's names, float32 on the CPU.

    Raises:
        DefenseKitError: the estimator gave something that the model does not have, nothing, another shape, or NaN.
    """
    import torch

    causal = pair.suspect.task == CAUSAL
    if causal and not estimator.any_loss:
        name = type(estimator).__name__
        raise UsageError(f"the estimator {name} measures classifiers alone, and the suspect is a {CAUSAL}")
    suspect, tokenizer = load(pair.suspect.folder, "suspect")
    parameters = [name for name, _ in suspect.named_parameters()]
    del suspect
    loss, own = token_losses if causal else None, derive_seed(seed, "estimator")
    context = EstimatorContext(partial(other_model, pair), tokenizer, rows, max_length, own, report, loss)
    with training.forked_random(derive_seed(seed, "global")):
        found = blame(estimator, estimator.estimate, context)
    names = pair.named_like_the_pair(parameters)
    statistics: dict[str, dict[str, Tensor]] = {}
    facts: dict[str, Any] = {"rows": len(rows), **found.facts}
    for statistic in sorted(estimator.provides):
        measured = found.statistics.get(statistic, {})
        if odd := sorted(measured.keys() - set(parameters)):
            raise fault(estimator, f"gave {statistic!r} for {listing(odd, 3)}, which the model does not have")
        tensors = {name: measured[own].detach().float().cpu() for name, own in names.items() if own in measured}
        if not tensors:
            raise fault(estimator, f"provides {statistic!r}, but gave none for any tensor in scope")
        for name, tensor in tensors.items():
            if tensor.shape != pair.block(name)[1].shape or not bool(torch.isfinite(tensor).all()):
                what = f"gave a {statistic} of {name} that has another shape than the weight, or is not finite"
                raise fault(estimator, what)
        statistics[statistic] = tensors
        zero = sum(int((tensor == 0).sum()) for tensor in tensors.values())
        facts[f"zero_{statistic}"] = zero / sum(tensor.numel() for tensor in tensors.values())
    return Estimate(statistics, facts)


def other_model(pair: Pair, which: "Literal['suspect', 'base'] | Path") -> "PreTrainedModel":
    """The suspect, the base's weights under the suspect's head, or another model like the suspect, on the device.

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
            ours, theirs = (found.get(name, "nothing") for found in shapes)
            if ours != theirs:
                raise UsageError(f"{which} is another kind of model: {name} is {theirs}, the suspect's is {ours}")
        labels = [list(model.config.id2label.values()) for model in (expected, loaded)]
        if labels[0] != labels[1]:
            raise UsageError(f"{which} has the labels {listing(labels[1])}, the suspect has {listing(labels[0])}")
    return placed(loaded)


def purify(
    pair: Pair,
    selection: Selection | None,
    steps: Sequence[Purifier],
    rows: Sequence[Row],
    target: Path,
    *,
    max_length: int,
    precision: training.Precision,
    seed: int,
    report: Report,
) -> None:
    """Write the suspect, purified step by step, into a folder of its own; without a selection weight steps do nothing.

    Raises:
        DefenseKitError: a step changed what it must not (a weight step what was not selected, a model step names or
            shapes), or a weight is not finite in the end.
    """
    suspect, trained = pair.suspect, 0
    target.mkdir(parents=True, exist_ok=True)
    # Inside, so that what is left by a process that was killed goes with what it was making.
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        folder = suspect.folder
        for number, (weights, group) in enumerate(groupby(steps, lambda step: isinstance(step, WeightStep))):
            made = Path(scratch) / str(number)
            checkpoint.copy_companions(suspect.folder, made)
            if weights:
                _apply(pair, selection, cast(list[WeightStep], list(group)), Checkpoint(folder), made)
            else:
                model = checkpoint.load_model(folder)
                places = _places(model, suspect)
                tokenizer = neutral(model, checkpoint.load_tokenizer(folder), "suspect")
                for step in cast(list[ModelStep], list(group)):
                    own = derive_seed(seed, "step", str(trained))
                    trained += 1
                    names = [name for name, _ in model.named_parameters()]
                    head = frozenset(names) - frozenset(pair.named_like_the_pair(names).values())
                    context = ModelStepContext(
                        tokenizer, rows, max_length, precision, own, report, partial(other_model, pair), head
                    )
                    shapes = _shapes(model)
                    with training.forked_random(own):
                        blame(step, step.train, model, context)
                    if _shapes(model) != shapes:
                        raise fault(step, "changed the names or shapes of the model's tensors")
                _write(model, places, suspect, made)
            folder = made
        if folder == suspect.folder:
            checkpoint.copy_companions(folder, target)
            _apply(pair, None, [], suspect, target)
        else:
            for path in folder.iterdir():
                path.rename(target / path.name)
    Checkpoint(target).check_finite()


def _shapes(model: "PreTrainedModel") -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _places(model: "PreTrainedModel", like: Checkpoint) -> dict[str, str]:
    """The names of a checkpoint's tensors to those of a loaded model's weights; tied ones may lie there several times.

    Raises:
        UsageError: the files have no place for a weight.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    loaded, in_file = align(weights, like.tensors)
    places = {in_file[name]: own for name, own in loaded.items() if name in in_file}
    placed = {id(weights[own]) for own in places.values()}
    if homeless := sorted(own for own, weight in weights.items() if id(weight) not in placed):
        raise UsageError(f"{like.folder} has no tensor for {listing(homeless, 3)}")
    return places


def _write(model: "PreTrainedModel", places: dict[str, str], like: Checkpoint, target: Path) -> None:
    """Write a trained model's weights into files like a checkpoint's: its names, shards, metadata, and each dtype."""
    weights = dict(model.named_parameters(remove_duplicate=False))

    def changed(name: str, before: "Tensor") -> "Iterator[Tensor] | None":
        return iter([weights[places[name]].detach().cpu().to(before.dtype)]) if name in places else None

    rewrite(like, target, changed)


def _apply(
    pair: Pair, selection: Selection | None, steps: Sequence[WeightStep], source: Checkpoint, target: Path
) -> None:
    """Stream the weights of ``source`` through weight steps into ``target``."""
    import torch

    names = Pair(pair.base, source).by_file_name

    def changed(own: str, weight: "Tensor") -> "Iterator[Tensor] | None":
        name = names.get(own)
        if selection is None or name is None or selection.nothing(name):
            return None
        return _stepped(selection, name, steps, weight)

    threads = min(torch.get_num_threads(), selection.scores.threads) if selection and _in_parts(steps) else 1
    rewrite(source, target, changed, threads)


def _in_parts(steps: Sequence[WeightStep]) -> bool:
    """Whether every step can do with a part of a tensor; what is kept hangs on whether anything was taken of it."""
    return all(step.elementwise and step.acts_on == "selected" for step in steps)


def _stepped(selection: Selection, name: str, steps: Sequence[WeightStep], weight: "Tensor") -> "Iterator[Tensor]":
    """One tensor's new weights: in parts where every step can do with a part, else whole."""
    shown: Iterable[tuple[TensorView, Tensor]]
    weights: Iterable[Tensor]
    if _in_parts(steps):
        shown = ((view, chosen) for view, _, chosen in selection.seen(name))
        weights = (weight.reshape(-1)[part] for part in slices(weight.numel()))
    else:
        shown, weights = [(selection.views[name], selection[name])], [weight]
    for (view, chosen), part in zip(shown, weights, strict=True):
        if anything(chosen.bool()):
            for step in steps:
                kept = step.acts_on == "kept"
                part = _step(step, view, part, (chosen == 0) & (view.drift != 0) if kept else chosen)
        yield part


def _differ(one: "Tensor", other: "Tensor") -> "Tensor":
    """Where the bits of two tensors of one dtype differ; numpy compares several times faster than torch."""
    import torch

    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    bits = [tensor.reshape(-1).view(whole).numpy() for tensor in (one, other)]
    return torch.from_numpy(bits[0] != bits[1]).reshape(one.shape)


def _step(step: WeightStep, view: TensorView, weight: "Tensor", acted_on: "Tensor") -> "Tensor":
    """What a step makes of weights, held to its contract."""
    before = versions([weight, acted_on])
    made: Tensor = blame(step, step.apply, view, weight, acted_on)
    if versions([weight, acted_on]) != before:
        raise fault(step, f"wrote into what it was handed of {view.name}, expected a new tensor")
    fits = made.shape == weight.shape and made.dtype == weight.dtype
    if not fits or anything(_differ(made, weight) & ~acted_on.bool()):
        raise fault(step, f"changed the shape, the dtype or unselected weights of {view.name}")
    return made
