"""Scorers: how suspicious each dimension is. A higher score is taken first, always."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import create_model

from defensekit.components.base import Component

if TYPE_CHECKING:
    from torch import Tensor

    from defensekit.components.tensors import TensorView


class Scorer(Component):
    """Scores every dimension of one tensor at a time.

    Where a dimension's score depends on that dimension alone (and on quantiles), say ``elementwise = True``: then
    tensors are shown in parts, flattened, which bounds the memory and is faster.
    """

    kind: ClassVar[str] = "scorer"
    needs: ClassVar[frozenset[str]] = frozenset()
    elementwise: ClassVar[bool] = False

    def eligible(self, t: "TensorView") -> "Tensor":
        """The dimensions of ``t`` that may be taken, bool, of its shape: those that moved, where nothing else is said.

        A scorer that does not look at drift may offer what never moved as well, one that says something of some
        tensors alone offers nothing of the others.
        """
        return t.drift.bool()  # other than 0; torch compares several times more slowly

    @abstractmethod
    def score(self, t: "TensorView") -> "Tensor":
        """Scores of ``t``'s shape, in float32, finite where ``t`` is eligible; not asked where nothing of it is.

        ``t.name``, ``t.base``, ``t.suspect``, ``t.drift`` (all float32), ``t[statistic]`` for what ``needs`` names,
        ``t.quantile(statistic, q)`` over the positive values of the whole model, ``t.seed``.
        """


def scorer(
    *, needs: Iterable[str] = (), elementwise: bool = False
) -> "Callable[[Callable[..., Tensor]], type[Scorer]]":
    """Make a scorer of a typed function: its first argument is the tensor, the others are the YAML parameters.

    >>> @scorer(needs={"curvature"}, elementwise=True)
    ... def ratio(t, exponent: float = 1.0):
    ...     "Drift over curvature."
    ...     return t.drift**2 / (t["curvature"] ** exponent + 1e-12)
    >>> ratio(exponent=0.5).exponent
    0.5
    """

    def decorate(function: "Callable[..., Tensor]") -> type[Scorer]:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        fields: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.annotation is parameter.empty:
                raise TypeError(f"the parameter {parameter.name!r} of {function.__name__} needs a type")
            fields[parameter.name] = (
                parameter.annotation,
                ... if parameter.default is parameter.empty else parameter.default,
            )

        def score(self: Scorer, t: "TensorView") -> "Tensor":
            return function(t, **{name: getattr(self, name) for name in fields})

        own = {"score": score, "needs": frozenset(needs), "elementwise": elementwise, "__module__": __name__}
        base = type(function.__name__, (Scorer,), own)
        component_class: Any = create_model(
            function.__name__, __base__=base, __module__=function.__module__, __doc__=function.__doc__, **fields
        )
        component_class.__qualname__ = function.__qualname__  # so that pickle finds the class where the function stood
        return cast(type[Scorer], component_class)

    return decorate
