"""Scores of defenses that prune. They don't use the drift: a weight that did not change may be selected as well.

A neuron of a feed-forward layer is selected by its column of the second matrix, its output weights: if they are 0 the
neuron has no effect. (GPT-2's matrices are transposed; the selector `units` takes care of that.)
"""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Scorer, TensorView
from defensekit_baselines.layout import NEURONS_IN

if TYPE_CHECKING:
    from torch import Tensor


class _Prunes(Scorer):
    """Every weight that has the statistic is eligible, changed or not."""

    def eligible(self, t: TensorView) -> "Tensor":
        import torch

        return torch.full(t.suspect.shape, self.needs <= t.statistics.keys())


class SmallWeights(_Prunes):
    """-|w|: the weights nearest to 0 come first.

    The weight-by-weight form of Fine-pruning that the papers on Fine-mixing and Fine-purifying compare with, as we
    recall them; not verified.
    """

    def score(self, t: TensorView) -> "Tensor":
        return -t.suspect.abs()


class Dormant(_Prunes):
    """The neurons that clean rows leave dormant (Fine-pruning, Liu, Dolan-Gavitt and Garg, RAID 2018).

    -sqrt(sum_t x_tj^2), x_j the neuron's output after its activation function, for the neuron's column of the second
    matrix of its feed-forward layer. The original takes the mean activation of the channels of the last convolution;
    here it is the root mean square, since GELU's outputs have either sign, and neurons of every layer.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"neuron-norm"})

    def score(self, t: TensorView) -> "Tensor":
        return -t["neuron-norm"]


class Wanda(_Prunes):
    """-|W_ij| norm(x_j): the weights that do least on clean rows come first (Wanda, Sun et al. 2023).

    Wanda compares within an output: take it with the selector `fraction-per-row`. Language-model pruning by it is a
    baseline in the code of CROW (NayMyatMin/CROW).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"input-norm"})

    def score(self, t: TensorView) -> "Tensor":
        return -(t.suspect.abs() * t["input-norm"])


class Lipschitz(Scorer):
    """How far the Lipschitz bound of a neuron lies above its layer's, in standard deviations; needs no data.

    CLP (Zheng et al., ECCV 2022) bounds a channel by sigma_max(W_c |gamma_c / std_c|), with the batch norm after it,
    and prunes above mean + u std of the layer, u = 3. A transformer has neither: here a channel is a neuron of a
    feed-forward layer, W_c its row of the first matrix, whose largest singular value is the Euclidean norm, and
    nothing replaces the batch norm. This is our extension; no published result supports it. CLP also sets a channel's
    bias to 0; here the bias stays, so a pruned neuron has a constant output.
    """

    def eligible(self, t: TensorView) -> "Tensor":
        import torch

        return torch.full(t.suspect.shape, bool(NEURONS_IN.search(t.name)))

    def score(self, t: TensorView) -> "Tensor":
        norms = t.suspect.double().norm(dim=1 - t.output_axis, keepdim=True)
        spread = norms.std() if norms.numel() > 1 else norms.new_zeros(())
        score: Tensor = ((norms - norms.mean()) / spread.clamp(min=1e-12)).float().expand(t.suspect.shape)
        return score


class NeuronMask(_Prunes):
    """1 - m: the neurons that Adversarial Neuron Pruning masks most come first (`anp`, which see).

    The selector `threshold` with ``above: 0.8`` prunes m < 0.2.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"neuron-mask"})

    def score(self, t: TensorView) -> "Tensor":
        return 1 - t["neuron-mask"]


class StaticHeads(_Prunes):
    """The heads whose attention from the token that is read varies least come first (PURE, Zhao et al., ICML 2024).

    PURE prunes heads in that order; take it with the selector `units` of ``unit: head`` and ``spare: 1``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"head-variance"})

    def score(self, t: TensorView) -> "Tensor":
        return -t["head-variance"]
