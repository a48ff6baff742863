"""The norm of a weight's input."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Estimate, EstimatorContext
from defensekit_baselines.estimators.layers import ByLayer, linear_layers, look, per_input

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class InputNorm(ByLayer):
    """The Euclidean norm of each input of a linear layer over the tokens of the clean rows, at the suspect.

        norm_j = sqrt(sum_t x_tj^2)

    for every weight W_ij (Sun et al., "A simple and effective pruning approach for large language models", 2023:
    Wanda's score is |W_ij| norm_j). Biases, norms and embedding tables have none.

        estimator: {name: input-norm}
    """

    provides: ClassVar[frozenset[str]] = frozenset({"input-norm"})

    def estimate(self, context: EstimatorContext) -> Estimate:
        model = context.model("suspect").eval()
        squares: dict[str, Tensor] = {}

        def seen(name: str, layer: "Module", x: "Tensor", y: "Tensor") -> None:
            total = x.square().sum(0)
            squares[name] = squares[name] + total if name in squares else total

        look(model, context, self.batch_size, seen)
        statistics = {}
        for name, layer in linear_layers(model):
            if name in squares:
                statistics[f"{name}.weight"] = per_input(layer, squares[name].sqrt())
        return Estimate({"input-norm": statistics})
