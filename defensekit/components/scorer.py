"""Scorers: how suspicious each dimension is. Higher scores are always selected first."""

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
    """Scores every dimension of one tensor at a time. A dimension is one scalar weight of the model.

    Attributes:
        needs: the names of the statistics that it uses.
        elementwise: True where a dimension's score depends on that dimension alone (and on quantiles). Tensors are then
            passed flattened and in parts, which bounds the memory and is faster.
    """

    kind: ClassVar[str] = "scorer"
    needs: ClassVar[frozenset[str]] = frozenset()
    elementwise: ClassVar[bool] = False

    def eligible(self, t: "TensorView") -> "Tensor":
        """The dimensions that may be selected: by default those with a drift other than 0.

        A scorer that does not use the drift may include all dimensions; one that scores only certain tensors excludes
        all dimensions of the others.

        Args:
            t: a tensor, or a part of one.

        Returns:
            A bool tensor of the shape of ``t``.
        """
        return t.drift.bool()  # several times faster than a comparison with 0

    @abstractmethod
    def score(self, t: "TensorView") -> "Tensor":
        """Score the dimensions of a tensor; not called for tensors without eligible dimensions.

        Args:
            t: the tensor, or a part of one: ``t.name``, ``t.base``, ``t.suspect`` and ``t.drift`` (float32),
                ``t[statistic]`` for the statistics in ``needs``, ``t.quantile(statistic, q)`` over the positive values
                of the whole model, and ``t.seed``.

        Returns:
            The scores, in float32, of the shape of ``t``, finite where it is eligible.
        """


def scorer(
    *, needs: Iterable[str] = (), elementwise: bool = False
) -> "Callable[[Callable[..., Tensor]], type[Scorer]]":
    """A decorator that turns a function with type hints into a scorer.

    The function's first argument is the tensor, the others are the YAML parameters.

    Args:
        needs: the names of the statistics that it uses.
        elementwise: as `Scorer.elementwise`.

    Returns:
        The decorator; it returns a subclass of `Scorer`.

    Raises:
        TypeError: a parameter has no type hint.

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
        component_class.__qualname__ = function.__qualname__  # so that pickle finds the class under the function's name
        return cast(type[Scorer], component_class)

    return decorate
