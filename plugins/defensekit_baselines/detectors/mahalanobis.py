"""Texts whose features lie far from those of every class."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from defensekit.api import Detector, DetectorContext
from defensekit.text import Row

if TYPE_CHECKING:
    from torch import Tensor


class Mahalanobis(Detector):
    """The distance of a text's features from the nearest class: min over classes of (f - mean)' S^-1 (f - mean).

    The features are what the suspect's head reads. Each class has the mean of its clean rows; S is the covariance
    within classes, one for all (Lee et al., NeurIPS 2018, arXiv 1807.03888, for outliers). DAN (Chen et al., Findings
    of EMNLP 2022) detects triggers by such distances, there summed over layers; this is the last layer alone.

    Ours: the covariance is shrunk by Ledoit and Wolf's formula (2004), since there are too few rows to invert it.
    """

    def fit(self, context: DetectorContext) -> "dict[str, Tensor]":
        import torch

        _, features, _ = context.features(context.model("suspect"), context.rows)
        features, labels = features.double(), torch.tensor([row.label for row in context.rows])
        classes, which = torch.unique(labels, return_inverse=True)
        means = torch.stack([features[labels == label].mean(0) for label in classes])
        return {"means": means, "precision": torch.linalg.pinv(shrunk(features - means[which]), hermitian=True)}

    def score(self, rows: Sequence[Row], fitted: "Mapping[str, Tensor]", context: DetectorContext) -> "Tensor":
        import torch

        _, features, _ = context.features(context.model("suspect"), rows)
        away = features.double()[:, None] - fitted["means"]
        return torch.einsum("rci,ij,rcj->rc", away, fitted["precision"], away).amin(1)


def shrunk(rows: "Tensor") -> "Tensor":
    """The covariance of centred rows (rows, width), shrunk towards a multiple of the identity by as much as is best.

    Ledoit and Wolf (2004), lemma 3.2 to 3.4. The squared error of the rows' outer products, the covariance and its
    target are sums over all entries: the width, by which the paper divides them, cancels.
    """
    import torch

    count, width = rows.shape
    covariance = rows.T @ rows / count
    target = covariance.trace() / width * torch.eye(width, dtype=rows.dtype)
    spread = (covariance - target).square().sum()
    error = ((rows.square().sum(1) ** 2).sum() / count - covariance.square().sum()) / count
    share = (error / spread).clamp(0, 1) if spread > 0 else 0.0
    return share * target + (1 - share) * covariance
