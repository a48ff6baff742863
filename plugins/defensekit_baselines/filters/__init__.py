"""Filters of training rows: what each of them knows of a row is what the suspect makes of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from defensekit.api import FilterContext

if TYPE_CHECKING:
    import numpy as np


def by_label(context: FilterContext) -> "Iterator[tuple[np.ndarray, np.ndarray]]":
    """The rows of every label: their places, and what the suspect's head reads of them, in float64."""
    import numpy as np

    labels = np.array([row.label for row in context.rows])
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        yield members, context.features.pooled[members].astype(np.float64)


def principal(hidden: "np.ndarray", dimensions: int) -> "np.ndarray":
    """The first principal components of rows, as many as there are."""
    from sklearn.decomposition import PCA

    components: np.ndarray = PCA(min(dimensions, *hidden.shape), svd_solver="full").fit_transform(hidden)
    return components
