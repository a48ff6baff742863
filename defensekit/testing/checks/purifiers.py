"""Checks of purifiers: only selected weights change, and shapes, dtypes and names stay."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit.components import ModelStep, WeightStep
from defensekit.components.tensors import TensorView
from defensekit.defense import purification
from defensekit.models.checkpoint import Checkpoint
from defensekit.testing.kit import Inapplicable, Subject, check, expect, ordinary_use
from defensekit.testing.pico import MAX_LENGTH, PicoModels
from defensekit.testing.watch import Handed
from defensekit.training import forked_random

if TYPE_CHECKING:
    from torch import Tensor


def _selections(weight: "Tensor") -> "dict[str, Tensor]":
    import torch

    half = torch.rand(weight.shape, generator=torch.Generator().manual_seed(5)) > 0.5
    soft = torch.rand(weight.shape, generator=torch.Generator().manual_seed(6)) * half
    return {"half of the weights": half, "a soft half": soft, "every weight": torch.ones_like(half)}


@ordinary_use(WeightStep)
def apply(step: WeightStep, pico: PicoModels, handed: Handed) -> Any:
    """Apply the step to every tensor, with several selections."""
    changed, views = {}, pico.views()
    for name in pico.pair.scope:
        _, weight = pico.pair.block(name)
        for what, selection in _selections(weight).items():
            given = handed.give(name, views[name]), handed.give("weight", weight.clone())
            changed[f"{name} ({what})"] = step.apply(*given, handed.give("selection", selection))
    return changed


@ordinary_use(ModelStep)
def train(step: ModelStep, pico: PicoModels, handed: Handed) -> Any:
    """Train the pico model."""
    model = handed.give("model", pico.load()[0], conduct_alone=True)
    context = pico.for_step(step, handed)
    with forked_random(context.seed):
        step.train(model, context)
    return dict(model.state_dict())


def _cases(pico: PicoModels) -> "Iterator[tuple[str, TensorView, Tensor]]":
    """Every tensor in each dtype that a model may have."""
    import torch

    views = pico.views()
    for name in pico.pair.scope:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            yield f"{name} in {str(dtype).removeprefix('torch.')}", views[name], pico.pair.block(name)[1].to(dtype)


@check(WeightStep)
def leaves_unselected_weights(subject: Subject) -> None:
    """Where the selection is 0 the weight is bitwise equal, in float32, bfloat16 and float16."""
    for where, t, weight in _cases(subject.pico):
        for what, selection in _selections(weight).items():
            changed, kept = subject.component.apply(t, weight.clone(), selection), selection == 0
            if changed.shape == weight.shape:
                moved = int((changed[kept] != weight[kept]).sum())
                expect(not moved, f"{moved} unselected weights of {where} changed, with {what} selected")


@check(WeightStep)
def elementwise_is_meant(subject: Subject) -> None:
    """A step with `elementwise = True` changes parts of a flattened tensor as it changes all of it."""
    import torch

    if not subject.component.elementwise:
        raise Inapplicable("it does not set `elementwise = True`, as steps on single weights can")
    views = subject.pico.views()
    for name in subject.pico.pair.scope:
        t, weight = views[name], subject.pico.pair.block(name)[1]
        for what, selection in _selections(weight).items():
            whole = subject.component.apply(t, weight.clone(), selection).flatten()
            for part in (slice(0, 1), slice(1, 7), slice(7, None)):
                base, suspect, own, chosen = (x.flatten()[part] for x in (t.base, t.suspect, weight, selection))
                view = TensorView(name, base, suspect, t.seed, {}, t.quantile)
                alone = subject.component.apply(view, own.clone(), chosen)
                here = f"weights {part.start} to {part.stop or len(whole)} of {name}, with {what} selected,"
                same = alone.shape == base.shape and torch.allclose(alone, whole[part], rtol=1e-5, atol=0)
                expect(same, f"expected {here} to be the same alone as within the whole tensor")


@check(WeightStep)
def keeps_dtype_and_shape(subject: Subject) -> None:
    """The new weight has the shape and dtype of the old one, and is finite."""
    import torch

    for where, t, weight in _cases(subject.pico):
        for what, selection in _selections(weight).items():
            changed = subject.component.apply(t, weight.clone(), selection)
            got, wanted = f"{list(changed.shape)} {changed.dtype}", f"{list(weight.shape)} {weight.dtype}"
            expect(got == wanted, f"expected {wanted} for {where}, got {got}, with {what} selected")
            expect(bool(torch.isfinite(changed).all()), f"expected finite weights for {where}, with {what} selected")


@check(WeightStep)
def does_nothing_at_fraction_0(subject: Subject) -> None:
    """Where nothing is selected, whether by bool or by soft zeros, nothing changes."""
    import torch

    for where, t, weight in _cases(subject.pico):
        for dtype in (torch.bool, torch.float32):
            changed = subject.component.apply(t, weight.clone(), torch.zeros(weight.shape, dtype=dtype))
            expect(changed.equal(weight), f"expected {where} unchanged with nothing selected ({dtype}), and it changed")


@check(ModelStep)
def keeps_names_and_tying(subject: Subject) -> None:
    """The purified model's file has the suspect's tensors with the same names, shapes and dtypes."""
    pico, step = subject.pico, subject.component
    before = Checkpoint(pico.suspect).tensors
    with tempfile.TemporaryDirectory() as folder:
        target, options = Path(folder) / "purified", dict[str, Any](max_length=MAX_LENGTH, seed=7)
        purification.purify(
            pico.pair, None, [step], pico.rows, target, precision="float32", report=lambda *done: None, **options
        )
        after = Checkpoint(target).tensors
    for name in sorted({**before, **after}):
        expect(before.get(name) == after.get(name), f"{name}: expected {before.get(name)}, got {after.get(name)}")
