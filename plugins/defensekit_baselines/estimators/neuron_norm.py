"""The norm of a neuron's output after its activation function."""

from typing import ClassVar

from defensekit.api import Estimate, EstimatorContext
from defensekit_baselines.estimators.input_norm import InputNorm
from defensekit_baselines.layout import NEURONS_OUT


class NeuronNorm(InputNorm):
    """`input-norm` of the feed-forward layers' second matrices: the norm of each neuron's output on clean rows.

    estimator: {name: neuron-norm}
    """

    provides: ClassVar[frozenset[str]] = frozenset({"neuron-norm"})

    def estimate(self, context: EstimatorContext) -> Estimate:
        statistics = super().estimate(context).statistics["input-norm"]
        kept = {name: norms for name, norms in statistics.items() if NEURONS_OUT.search(name)}
        return Estimate({"neuron-norm": kept})
