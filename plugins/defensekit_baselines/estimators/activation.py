"""How active a unit is."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Estimate, EstimatorContext
from defensekit_baselines.estimators.layers import ByLayer, is_transposed, linear_layers, look

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class Activation(ByLayer):
    """The mean size of each output of a linear layer over the tokens of the clean rows, at the suspect.

        activation_i = 1/T sum_t |y_ti|

    for every weight W_ij and bias b_i of the unit, before the activation function (Fine-pruning, Liu, Dolan-Gavitt and
    Garg 2018, takes the units that clean data leave dormant; in a transformer a unit's output may have either sign).

        estimator: {name: activation}
    """

    provides: ClassVar[frozenset[str]] = frozenset({"activation"})

    def estimate(self, context: EstimatorContext) -> Estimate:
        model = context.model("suspect").eval()
        sums: dict[str, Tensor] = {}
        tokens: dict[str, int] = {}

        def seen(name: str, layer: "Module", x: "Tensor", y: "Tensor") -> None:
            total = y.abs().sum(0)
            sums[name] = sums[name] + total if name in sums else total
            tokens[name] = tokens.get(name, 0) + len(y)

        look(model, context, self.batch_size, seen)
        statistics = {}
        for name, layer in linear_layers(model):
            if name in sums:
                mean = sums[name] / tokens[name]
                weight: Tensor = layer.weight  # type: ignore[assignment]
                statistics[f"{name}.weight"] = (mean if is_transposed(layer) else mean[:, None]).expand(weight.shape)
                if layer.bias is not None:
                    statistics[f"{name}.bias"] = mean
        return Estimate({"activation": statistics})
