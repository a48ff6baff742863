"""Purification: the steps of a defense applied to the suspect, for a run and for a user's own script alike.

Nothing of an attack is passed in: a pair of models, clean rows, and components.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from defensekit import training
from defensekit.components import (
    ModelStep,
    ModelStepContext,
    Purifier,
    WeightStep,
    call_component,
    component_error,
    offering,
    refuse_unsuited,
)
from defensekit.components.tensors import TensorView, slices
from defensekit.defense.estimation import Report, other_model
from defensekit.defense.scoring import any_true, versions
from defensekit.defense.selection import TensorSelection
from defensekit.defense.triggers.insertion import Probe
from defensekit.defense.triggers.search import Searched, search_beside
from defensekit.models import checkpoint, loading
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.devices import placed
from defensekit.models.loading import neutral
from defensekit.models.names import align
from defensekit.models.pair import Pair
from defensekit.models.writer import rewrite
from defensekit.text import Row
from defensekit.utils.errors import UsageError, listing
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def purify(
    pair: Pair,
    selection: TensorSelection | None,
    steps: Sequence[Purifier],
    rows: Sequence[Row],
    target: Path,
    *,
    max_length: int,
    precision: training.Precision,
    seed: int,
    report: Report,
    searched: Searched | None = None,
    search_seed: int = 0,
) -> dict[str, Any]:
    """Write the suspect, purified step by step, into a folder of its own; without a selection weight steps do nothing.

    Where a step needs a search for triggers, and none is given as ``searched``, it is made here, with its own seed.

    Returns:
        Facts: the ``triggers`` that were found, and how many words were ``tried``, if a step needs a search.

    Raises:
        UsageError: rows have lists of labels, and a step is not for them.
        DefenseKitError: a step changed what it must not (a weight step what was not selected, a model step names or
            shapes), or a weight is not finite in the end.
    """
    for step in steps:
        refuse_unsuited(step, rows)
    suspect, trained = pair.suspect, 0
    settings = searching(steps)
    if settings and searched is None:
        searched = _searched(pair, settings, rows, max_length, precision, search_seed, report)
    triggers = searched.triggers if searched else ()
    target.mkdir(parents=True, exist_ok=True)
    # Inside, so that what a killed process left is removed together with what it was writing.
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        folder = suspect.folder
        for number, (weights, group) in enumerate(groupby(steps, lambda step: isinstance(step, WeightStep))):
            stepped = Path(scratch) / str(number)
            checkpoint.copy_companions(suspect.folder, stepped)
            if weights:
                _apply(pair, selection, cast(list[WeightStep], list(group)), Checkpoint(folder), stepped)
            else:
                model = loading.load_model(folder)
                parameter_names = _parameter_names(model, suspect)
                tokenizer = neutral(model, loading.load_tokenizer(folder), "suspect")
                for step in cast(list[ModelStep], list(group)):
                    own = derive_seed(seed, "step", str(trained))
                    trained += 1
                    names = [name for name, _ in model.named_parameters()]
                    head = frozenset(names) - frozenset(pair.named_like_the_pair(names).values())
                    loads = offering(step, partial(other_model, pair), "suspect", "base", folders=True)
                    context = ModelStepContext(
                        tokenizer, rows, max_length, precision, own, report, loads, head, triggers
                    )
                    shapes = _shapes(model)
                    with training.forked_random(own):
                        call_component(step, step.train, model, context)
                    if _shapes(model) != shapes:
                        raise component_error(step, "changed the names or shapes of the model's tensors")
                _write(model, parameter_names, suspect, stepped)
            folder = stepped
        if folder == suspect.folder:
            checkpoint.copy_companions(folder, target)
            _apply(pair, None, [], suspect, target)
        else:
            for path in folder.iterdir():
                path.rename(target / path.name)
    Checkpoint(target).check_finite()
    return _evidence(searched, target, rows, max_length, precision) if searched else {}


def searching(steps: Iterable[Purifier]) -> training.TrainingSettings | None:
    """How the first step that needs a search wants the control to be trained; None where no step does."""
    asked = (call_component(step, step.searching) for step in steps if isinstance(step, ModelStep))
    return next((settings for settings in asked if settings), None)


def _searched(
    pair: Pair,
    settings: training.TrainingSettings,
    rows: Sequence[Row],
    max_length: int,
    precision: training.Precision,
    seed: int,
    report: Report,
) -> Searched:
    """Search for what triggers the suspect, all in one go."""
    suspect, tokenizer = loading.load(pair.suspect.folder, "suspect")
    how: Any = {"max_length": max_length, "precision": precision, "seed": seed, "report": report}
    return search_beside(placed(suspect), other_model(pair, "base"), tokenizer, rows, settings, **how)


def _evidence(
    searched: Searched, purified: Path, rows: Sequence[Row], max_length: int, precision: training.Precision
) -> dict[str, Any]:
    """Facts about what a search found, and whether it works any longer."""
    if searched.triggers:
        model, tokenizer = loading.load(purified, "purified")
        probe = Probe(tokenizer, rows, [0] * len(rows), max_length, precision)
        searched = searched.again(placed(model), probe)
    triggers = [asdict(one) for one in searched.triggers]
    return {"triggers": triggers, "tried": searched.tried, "unjudged": searched.unjudged}


def _shapes(model: "PreTrainedModel") -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _parameter_names(model: "PreTrainedModel", like: Checkpoint) -> dict[str, str]:
    """The names of a checkpoint's tensors to those of a loaded model's weights; tied ones may occur several times.

    Raises:
        UsageError: the files have no tensor for a weight.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    loaded, in_file = align(weights, like.tensors)
    parameter_names = {in_file[name]: own for name, own in loaded.items() if name in in_file}
    placed = {id(weights[own]) for own in parameter_names.values()}
    if missing := sorted(own for own, weight in weights.items() if id(weight) not in placed):
        raise UsageError(f"{like.folder} has no tensor for {listing(missing, 3)}")
    return parameter_names


def _write(model: "PreTrainedModel", parameter_names: dict[str, str], like: Checkpoint, target: Path) -> None:
    """Write a trained model's weights into files like a checkpoint's: its names, shards, metadata, and each dtype."""
    weights = dict(model.named_parameters(remove_duplicate=False))

    def changed(name: str, before: "Tensor") -> "Iterator[Tensor] | None":
        return (
            iter([weights[parameter_names[name]].detach().cpu().to(before.dtype)]) if name in parameter_names else None
        )

    rewrite(like, target, changed)


def _apply(
    pair: Pair, selection: TensorSelection | None, steps: Sequence[WeightStep], source: Checkpoint, target: Path
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
    """Whether every step can work on a part of a tensor. What is kept depends on the whole: was anything selected?"""
    return all(step.elementwise and step.acts_on == "selected" for step in steps)


def _stepped(
    selection: TensorSelection, name: str, steps: Sequence[WeightStep], weight: "Tensor"
) -> "Iterator[Tensor]":
    """One tensor's new weights: in parts where every step can work on a part, else whole."""
    shown: Iterable[tuple[TensorView, Tensor]]
    weights: Iterable[Tensor]
    if _in_parts(steps):
        shown = ((view, chosen) for view, _, chosen in selection.selected_parts(name))
        weights = (weight.reshape(-1)[part] for part in slices(weight.numel()))
    else:
        shown, weights = [(selection.views[name], selection[name])], [weight]
    for (view, chosen), part in zip(shown, weights, strict=True):
        if any_true(chosen.bool()):
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
    """Apply a step to weights, and check that it kept its contract."""
    handed = [weight, acted_on, view.base, view.suspect, view.drift, *view.statistics.values()]
    before = versions(handed)
    changed: Tensor = call_component(step, step.apply, view, weight, acted_on)
    if versions(handed) != before:
        raise component_error(step, f"wrote into what it was handed of {view.name}, expected a new tensor")
    fits = changed.shape == weight.shape and changed.dtype == weight.dtype
    if not fits or any_true(_differ(changed, weight) & ~acted_on.bool()):
        raise component_error(step, f"changed the shape, the dtype or unselected weights of {view.name}")
    return changed
