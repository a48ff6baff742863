"""Checks of selectors: the highest scores, the exact number, and only eligible dimensions."""

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from defensekit.components import Selector
from defensekit.components.tensors import Cut, Scored, Scores
from defensekit.defense import selection
from defensekit.testing.kit import Inapplicable, Subject, check, expect, ordinary_use
from defensekit.testing.pico import PicoModels
from defensekit.testing.watch import Handed

if TYPE_CHECKING:
    from torch import Tensor

ONE = "encoder.layer.0.output.weight"  # a single tensor, so that every scope is the same


@ordinary_use(Selector)
def select(selector: Selector, pico: PicoModels, handed: Handed) -> Any:
    """Select dimensions of the pico model."""
    return _selected(selector, handed.give("scores", pico.scores()))


def _selected(selector: Selector, scores: Scores) -> "dict[str, Tensor]":
    """A selector's selections by tensor, not checked yet."""
    taken = selector.select(scores)
    return {name: one.take(scores[name]) if isinstance(one, Cut) else one for name, one in taken.items()}


@check(Selector)
def takes_what_is_eligible_alone(subject: Subject) -> None:
    """A selection for every tensor, of its shape, bool or in [0, 1], and 0 where a dimension is not eligible."""
    selection.select(subject.pico.scores(), subject.component)


@check(Selector)
def takes_exactly_its_fraction(subject: Subject) -> None:
    """A selector with a `fraction` selects exactly round(fraction x eligible) dimensions, ties included."""
    if "fraction" not in type(subject.component).model_fields:
        raise Inapplicable("it has no parameter `fraction`")
    scores = _column()
    eligible, tried = int(scores[ONE].eligible.sum()), 0
    for fraction in (0.0, 0.013, 0.25, 0.5, 0.77, 1.0):
        try:
            selector = type(subject.component).model_validate(subject.component.parameters() | {"fraction": fraction})
        except ValidationError:
            continue
        tried += 1
        got, wanted = int((_selected(selector, scores)[ONE] != 0).sum()), round(fraction * eligible)
        expect(got == wanted, f"expected {wanted} of {eligible} eligible dimensions at {fraction=}, got {got}")
    if not tried:
        raise Inapplicable("beside its other parameters it takes no `fraction`")


@check(Selector)
def takes_the_highest(subject: Subject) -> None:
    """No eligible dimension that is left out scores higher than a selected one."""
    scores = _column()
    chosen = (_selected(subject.component, scores)[ONE] != 0) & scores[ONE].eligible
    left = scores[ONE].eligible & ~chosen
    if not bool(chosen.any()) or not bool(left.any()):
        raise Inapplicable("with these parameters it selects all or nothing of the test tensor")
    lowest, highest = float(scores[ONE].score[chosen].min()), float(scores[ONE].score[left].max())
    expect(lowest >= highest, f"expected the highest scores, got one of {lowest:g} taken, and one of {highest:g} left")


@check(Selector)
def takes_nothing_as_it_says(subject: Subject) -> None:
    """Where `takes_nothing` is true the selection is empty, since scores are not computed then."""
    if not subject.component.takes_nothing():
        raise Inapplicable("with these parameters it selects something")
    selection = _selected(subject.component, subject.pico.scores())
    taken = sum(int((chosen != 0).sum()) for chosen in selection.values())
    expect(taken == 0, f"expected nothing, since takes_nothing() is true, got {taken} dimensions")


def _column() -> Scores:
    """One tensor of 100 rows of one dimension: rows and dimensions are the same."""
    import torch

    generator = torch.Generator().manual_seed(3)
    score: Tensor = torch.randint(-9, 10, (100, 1), generator=generator).float()
    eligible = torch.rand(100, 1, generator=generator) > 0.2
    return Scores({ONE: Scored(torch.where(eligible, score, 1e6), eligible, "encoder.layer.0")})
