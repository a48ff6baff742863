"""Filters that take whole clusters of rows: activation clustering and CUBE."""

from typing import TYPE_CHECKING

from defensekit.api import Field, Filter, FilterContext
from defensekit_baselines.filters import by_label, principal

if TYPE_CHECKING:
    import numpy as np


class ActivationClustering(Filter):
    """How much nearer a row is to the smaller of two clusters of its label, where that is small enough to be poison.

    Activation clustering (Chen et al. 2018, arXiv 1811.03728): the features of a label's rows are reduced to a few
    dimensions and split by k-means into two clusters. Code read: the Adversarial Robustness Toolbox (10 principal
    components; by relative size, a cluster of less than 35 % of the label's rows is poisoned). That the paper reduces
    by independent components is as we recall it. Ours: features are what the classifier's head reads; the score is the
    distance to the larger cluster's centre less that to the smaller one's, so that the threshold 0 takes the cluster,
    and 0 in a label whose clusters are too even.
    """

    dimensions: int = Field(10, ge=1, description="principal components that are clustered")
    largest: float = Field(
        0.35, gt=0, le=0.5, description="the share of a label's rows that a cluster of poisoned rows stays below"
    )

    def score(self, context: FilterContext) -> "np.ndarray":
        import numpy as np
        from sklearn.cluster import KMeans

        scores = np.zeros(len(context.rows))
        for members, hidden in by_label(context):
            if len(np.unique(hidden, axis=0)) < 2:
                continue
            reduced = principal(hidden, self.dimensions)
            clusters = KMeans(2, n_init=10, random_state=context.seed).fit(reduced)
            sizes, distances = np.bincount(clusters.labels_, minlength=2), clusters.transform(reduced)
            small = int(sizes.argmin())
            if sizes[small] < self.largest * len(members):
                scores[members] = distances[:, 1 - small] - distances[:, small]
        return scores


class Cube(Filter):
    """Whether a row lies outside the largest cluster of its label.

    CUBE (Cui et al., NeurIPS 2022, arXiv 2206.08514): the hidden states of all rows are reduced to two dimensions and
    clustered by density; of every label, the largest cluster stays. Code read: OpenBackdoor (an encoder of its own,
    trained on the rows for 10 epochs; 20 principal components, then UMAP to 2 dimensions; HDBSCAN with 100 samples;
    rows in no cluster count as one). Ours: the suspect takes the place of the encoder, and principal components alone
    that of UMAP: they need no further package, but pull clusters apart less. HDBSCAN is scikit-learn's.
    """

    dimensions: int = Field(2, ge=1, description="principal components that are clustered")
    min_samples: int = Field(
        100, ge=1, description="rows near a row that make its neighbourhood dense, itself included"
    )
    min_cluster_size: int = Field(5, ge=2, description="rows that make a cluster")

    def score(self, context: FilterContext) -> "np.ndarray":
        import numpy as np
        from sklearn.cluster import HDBSCAN

        reduced = principal(context.features.hidden.astype(np.float64), self.dimensions)
        samples = min(self.min_samples, len(reduced))
        group_of = HDBSCAN(min_cluster_size=self.min_cluster_size, min_samples=samples, copy=True).fit_predict(reduced)
        scores = np.zeros(len(context.rows))
        for members, _ in by_label(context):
            clusters, sizes = np.unique(group_of[members], return_counts=True)
            scores[members] = group_of[members] != clusters[sizes.argmax()]
        return scores
