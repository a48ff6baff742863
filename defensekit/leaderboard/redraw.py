"""What chance does to a mean over test rows, attacks and seeds: the percentile bootstrap (Efron 1979).

Test rows are drawn anew for every seed, the same ones for all of its attacks, which are asked about the same rows; and
then seeds. The draws are the same for all rows of a board, so that the draws of a difference are the difference of the
draws.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from defensekit.leaderboard.tracks import Cell

if TYPE_CHECKING:
    import numpy as np

DRAWS = 2_000


def redrawn(values: Mapping[Cell, "np.ndarray"], least: float = -math.inf) -> "np.ndarray":
    """Means over the attacks of each seed, which count alike, for every draw of test rows: (seeds, DRAWS).

    Args:
        values: (rows,) of whole numbers, of each cell.
        least: what the mean of a cell counts at least.
    """
    import numpy as np

    by_seed = defaultdict(list)
    for cell in sorted(values):
        rows = len(values[cell])
        # Whole numbers, so that sums are exact.
        means = (_counts(rows, cell[1]) @ values[cell].astype(np.float32)).astype(float) / rows
        by_seed[cell[1]].append(np.maximum(means, least))
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
def _counts(rows: int, seed: int) -> "np.ndarray":
    """How often each draw has each test row, (DRAWS, rows)."""
    import numpy as np

    rng = np.random.default_rng((seed, rows))
    counts: np.ndarray = rng.multinomial(rows, np.full(rows, 1 / rows), DRAWS).astype(np.float32)
    return counts
