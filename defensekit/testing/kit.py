"""Checks, and their subject: a component, the pico model, and the effects of one use of the component."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from defensekit.components import Component
from defensekit.testing.pico import PicoModels, pico
from defensekit.testing.watch import Handed, Seen, watching

if TYPE_CHECKING:
    from torch import Tensor

# reference(model, samples): an estimator's statistics by the simplest code, for a model in float64 and batches of one
# row each.
Reference = Callable[[Any, "list[dict[str, Tensor]]"], "Mapping[str, Mapping[str, Tensor]]"]


class Mismatch(AssertionError):
    """A check failed: what was expected, what was found, and for which input."""


class Inapplicable(Exception):
    """A check does not apply to a component; the message says why."""


def expect(condition: object, message: str) -> None:
    """Fail the check with a message, unless the condition holds."""
    if not condition:
        raise Mismatch(message)


@dataclass(frozen=True)
class Used:
    """One use of a component: its arguments, its result, and its side effects."""

    handed: Handed
    result: Any
    seen: Seen


@dataclass(frozen=True)
class Subject:
    """A component under test, with its author's ``order`` or ``reference``."""

    component: Any
    order: Sequence[Mapping[str, float]] = ()
    reference: Reference | None = None

    @property
    def pico(self) -> PicoModels:
        """The models and rows for the checks."""
        return pico()

    @cached_property
    def used(self) -> Used:
        """One use of the component, cached."""
        return self._use(1)

    def use(self) -> None:
        """Use it once now; what that raises is raised here."""
        _ = self.used

    @cached_property
    def used_again(self) -> Used:
        """A second use with the same arguments, under other global random states."""
        return self._use(2)

    def _use(self, seed: int) -> Used:
        models, handed = self.pico, Handed()  # created before side effects are recorded
        ordinary = next((function for kind, function in USES if isinstance(self.component, kind)), None)
        if ordinary is None:
            raise Inapplicable(f"there is no `@ordinary_use` for the kind {self.component.kind}")
        with watching(seed) as seen:
            result = ordinary(self.component, models, handed)
        return Used(handed, result, seen)


@dataclass(frozen=True)
class Check:
    """A check of certain kinds: ``says`` is its description; ``calls`` is whether it uses the component."""

    name: str
    says: str
    kinds: tuple[type[Component], ...]
    calls: bool
    run: Callable[[Subject], None]


CHECKS: list[Check] = []
USES: list[tuple[type[Component], Callable[[Any, PicoModels, Handed], Any]]] = []

_Function = TypeVar("_Function", bound=Callable[..., Any])


def check(*kinds: type[Component], calls: bool = True) -> Callable[[_Function], _Function]:
    """A decorator that registers a check of these kinds (none: all kinds); users read its name and docstring."""

    def add(function: _Function) -> _Function:
        says = " ".join((function.__doc__ or "").split())
        CHECKS.append(Check(function.__name__.replace("_", "-"), says, kinds, calls, function))
        return function

    return add


def ordinary_use(kind: type[Component]) -> Callable[[_Function], _Function]:
    """A decorator: ``function(component, pico, handed)`` uses a component of the kind once and returns the result."""

    def add(function: _Function) -> _Function:
        USES.append((kind, function))
        return function

    return add
