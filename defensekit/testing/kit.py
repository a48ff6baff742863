"""What a check is, and what it is given: a component, the pico model, and what one use of the component did."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from defensekit.components import Component
from defensekit.testing.pico import Pico, pico
from defensekit.testing.watch import Handed, Seen, watching

if TYPE_CHECKING:
    from torch import Tensor

# reference(model, samples): an estimator's statistics, computed the dumbest way, of a model in float64 on batches of
# one row each.
Reference = Callable[[Any, "list[dict[str, Tensor]]"], "Mapping[str, Mapping[str, Tensor]]"]


class Mismatch(AssertionError):
    """What was expected and what was found, at what input."""


class Inapplicable(Exception):
    """Why a check has nothing to say about a component."""


def expect(condition: object, message: str) -> None:
    """Fail the check with a message, unless the condition holds."""
    if not condition:
        raise Mismatch(message)


@dataclass(frozen=True)
class Used:
    """A component used once as the engine would: what it was handed, what it made of that, what it did besides."""

    handed: Handed
    result: Any
    seen: Seen


@dataclass(frozen=True)
class Subject:
    """A component under test, with what its author says of it."""

    component: Any
    order: Sequence[Mapping[str, float]] = ()
    reference: Reference | None = None

    @property
    def pico(self) -> Pico:
        """The models and rows that it is tried on."""
        return pico()

    @cached_property
    def used(self) -> Used:
        """Used once."""
        return self._use(1)

    def use(self) -> None:
        """Use it once now; what that raises is raised here."""
        _ = self.used

    @cached_property
    def used_again(self) -> Used:
        """Used once more on the same, under other global random states."""
        return self._use(2)

    def _use(self, seed: int) -> Used:
        models, handed = self.pico, Handed()  # made before anybody watches
        ordinary = next((function for kind, function in USES if isinstance(self.component, kind)), None)
        if ordinary is None:
            raise Inapplicable(f"how a {self.component.kind} is used is not known: no `@ordinary_use` says it")
        with watching(seed) as seen:
            result = ordinary(self.component, models, handed)
        return Used(handed, result, seen)


@dataclass(frozen=True)
class Check:
    """One promise of these kinds: ``says`` is what the user reads; ``calls`` where the component is used for it."""

    name: str
    says: str
    kinds: tuple[type[Component], ...]
    calls: bool
    run: Callable[[Subject], None]


CHECKS: list[Check] = []
USES: list[tuple[type[Component], Callable[[Any, Pico, Handed], Any]]] = []

_Function = TypeVar("_Function", bound=Callable[..., Any])


def check(*kinds: type[Component], calls: bool = True) -> Callable[[_Function], _Function]:
    """A decorator: a check of these kinds (none: of all); name and docstring are what a user reads."""

    def add(function: _Function) -> _Function:
        says = " ".join((function.__doc__ or "").split())
        CHECKS.append(Check(function.__name__.replace("_", "-"), says, kinds, calls, function))
        return function

    return add


def ordinary_use(kind: type[Component]) -> Callable[[_Function], _Function]:
    """A decorator: ``function(component, pico, handed)`` uses a component of the kind once and returns what it made."""

    def add(function: _Function) -> _Function:
        USES.append((kind, function))
        return function

    return add
