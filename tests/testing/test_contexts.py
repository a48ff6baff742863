"""The contexts of the kit and of a run: which models a component may ask for, and who is blamed for another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defensekit.api import Estimate
from defensekit.components import Component, offering
from defensekit.defense import estimation, purification
from defensekit.testing.pico import MAX_LENGTH, pico
from defensekit.testing.watch import Handed
from defensekit.utils.errors import DefenseKitError
from tests.testing.good import Gradients, Long, Shrink, Unsure

WORDS = "expected 'suspect', 'base'"
KIT: dict[str, tuple[Component, Callable[[], Any], str]] = {
    "estimator": (Gradients(), lambda: pico().for_estimator(Gradients(), Handed()), WORDS),
    "filter": (Long(), lambda: pico().for_filter(Long(), Handed()), WORDS),
    "purifier": (Shrink(), lambda: pico().for_step(Shrink(), Handed()), f"{WORDS}, or a folder as a Path"),
    "detector": (Unsure(), lambda: pico().for_detector(Unsure(), Handed()), f"{WORDS}, 'purified'"),
}


@pytest.mark.parametrize("kind", KIT)
@pytest.mark.parametrize("which", [None, "suspekt", 3, b"suspect"])
def test_the_kit_refuses_what_a_run_refuses_in_the_same_words(kind: str, which: Any) -> None:
    component, context, expected = KIT[kind]
    who = f"the {kind} {type(component).__name__} of tests.testing.good"
    with pytest.raises(DefenseKitError) as refused:
        context().model(which)
    assert str(refused.value) == f"{who} asks for the model {which!r}; {expected}"


def test_a_folder_is_offered_only_where_it_is_said() -> None:
    assert offering(Shrink(), str, "suspect", folders=True)(Path("there")) == "there"
    with pytest.raises(DefenseKitError, match=r"asks for the model .*Path\('there'\); expected 'suspect'$"):
        offering(Shrink(), str, "suspect")(Path("there"))


class Nobody(Gradients):
    """Asks for no model in particular, and would get the suspect."""

    def estimate(self, context: Any) -> Estimate:
        context.model(None)
        return super().estimate(context)


class Nowhere(Shrink):
    """Gives a folder as text, and would get the suspect."""

    def train(self, model: Any, context: Any) -> None:
        context.model(str(pico().purified))


def test_a_run_refuses_them(tmp_path: Path) -> None:
    rows: Any = pico().rows
    options: dict[str, Any] = {"max_length": MAX_LENGTH, "seed": 7, "report": lambda done, total: None}
    with pytest.raises(DefenseKitError, match=r"the estimator Nobody of .* asks for the model None; expected"):
        estimation.estimate(pico().pair, Nobody(), rows, **options)
    with pytest.raises(DefenseKitError, match=r"the purifier Nowhere of .* asks for the model '/.*; expected"):
        purification.purify(pico().pair, None, [Nowhere()], rows, tmp_path / "out", precision="float32", **options)
