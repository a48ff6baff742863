"""What chance does to a mean over test rows, attacks and seeds: the percentile bootstrap (Efron 1979).

Test rows are drawn anew, a row of several seeds or attacks once for all of them, since it is the same row; and then
seeds. How often a row is drawn depends on its id alone, by Poisson frequencies (Hanley and MacGibbon 2006): the draws
are the same for all rows of a board, so that the draws of a difference are the difference of the draws.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from defensekit.leaderboard.tracks import Cell

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DRAWS = 2_000


def redrawn(values: "Mapping[Cell, pd.Series]", least: float = -math.inf) -> "np.ndarray":
    """Means over the attacks of each seed, which count alike, for every draw of test rows: (seeds, DRAWS).

    Args:
        values: (rows,) of whole numbers, of each cell, by the rows' ids.
        least: what the mean of a cell counts at least.
    """
    import numpy as np

    by_seed = defaultdict(list)
    for cell in sorted(values):
        counts = _counts(values[cell].index.to_numpy(np.int64).tobytes())
        # Whole numbers, so that sums are exact. Of one row or two a draw may have none.
        sums = (counts @ values[cell].to_numpy(np.float32)).astype(float)
        by_seed[cell[1]].append(np.maximum(sums / np.maximum(counts.sum(axis=1), 1), least))
    return np.array([np.mean(attacks, axis=0) for attacks in by_seed.values()])


def interval(means: "np.ndarray") -> tuple[float, float]:
    """95 % of a mean over seeds, or of a difference of two.

    Args:
        means: (seeds, DRAWS), as ``redrawn`` gives them, or one less another.
    """
    import numpy as np

    drawn = np.random.default_rng(0).integers(len(means), size=means.shape)
    low, high = np.quantile(np.take_along_axis(means, drawn, axis=0).mean(axis=0), (0.025, 0.975))
    return float(low), float(high)


@lru_cache(maxsize=32)
def _counts(ids: bytes) -> "np.ndarray":
    """How often each draw has each test row, (DRAWS, rows)."""
    import numpy as np

    counts = np.stack([_of_row(int(row)) for row in np.frombuffer(ids, dtype=np.int64)], axis=1)
    return counts.astype(np.float32)


@lru_cache(maxsize=100_000)
def _of_row(row: int) -> "np.ndarray":
    """How often each draw has a row, (DRAWS,)."""
    import numpy as np

    counts: np.ndarray = np.random.default_rng(abs(row)).poisson(1, DRAWS).astype(np.uint8)
    return counts
