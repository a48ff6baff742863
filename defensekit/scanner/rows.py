"""Rows of the embedding that drifted more than the frequency of their token explains.

A rare word that was made a trigger is in every poisoned row, so its row of the embedding moves as a frequent word's
does. The idea is E-PUR's (Zhang et al., "Fine-mixing", Findings of EMNLP 2022), which divides the drift by the
logarithm of the frequency; here a row is compared with rows of similar frequency in the same model, which
needs no constant.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[Any]

FEWEST = 30  # rows of a group that a row is compared with
# Rows of a group that all moved alike give no estimate of how they vary: the spread of log drift is at least this.
LEAST_SPREAD = 0.1
_EPSILON = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24, "F64": 2.0**-53}


@dataclass
class RowDrift:
    """Collects, block by block, what is needed of an embedding: per row |delta|^2, <delta, w>, |w|^2, w the base."""

    name: str
    dtype: str
    rows: int
    squares: "Array" = field(init=False)
    products: "Array" = field(init=False)
    norms: "Array" = field(init=False)

    def __post_init__(self) -> None:
        import numpy as np

        self.squares, self.products, self.norms = (np.zeros(self.rows) for _ in range(3))

    def look(self, name: str, start: int, base: "Tensor", suspect: "Tensor") -> None:
        """Take a block of any tensor; other tensors are skipped."""
        if name != self.name:
            return
        base, delta = base.double(), (suspect - base).double()
        rows = slice(start, start + len(base))
        self.squares[rows] = delta.square().sum(1).numpy()
        self.products[rows] = (delta * base).sum(1).numpy()
        self.norms[rows] = base.square().sum(1).numpy()

    @cached_property
    def decay(self) -> float:
        """How much weight decay shrank rows that no text touched, as a share of them: the median over rows."""
        import numpy as np

        shrunk = np.divide(-self.products, self.norms, out=np.zeros(self.rows), where=self.norms > 0)
        return max(float(np.median(shrunk)), 0.0)

    @cached_property
    def drift(self) -> "Array":
        """|delta| of every row without weight decay; 0 where a row moved by no more than that and by rounding.

        A row that no text touched moves by decay alone, delta = -c w with one c for all rows.
        """
        import numpy as np

        decay = self.decay
        left = np.maximum(self.squares + 2 * decay * self.products + decay**2 * self.norms, 0) ** 0.5
        noise = np.maximum(0.05 * decay, _EPSILON.get(self.dtype, 0.0) / 4) * self.norms**0.5
        drift: Array = np.where((self.squares > 0) & (left > noise), left, 0.0)
        return drift


@dataclass(frozen=True)
class Outliers:
    """How far each row lies above rows of similar frequency.

    ``z`` is how many spreads its log drift lies above their median; a spread is 1.4826 times the median absolute
    deviation. ``group`` is the group of the row, and ``typical`` the median drift of that group. A row that is not
    judged has z NaN and group -1.
    """

    z: "Array"
    group: "Array"
    typical: "Array"


def outliers(drift: "Array", frequency: "Array", judged: "Array") -> Outliers:
    """Compare every row's drift with rows whose token is about as frequent.

    Groups are a factor of two in frequency + 1; one with fewer than ``FEWEST`` rows joins the next rarer, and the
    rarest, which has none, the next more frequent.

    Args:
        drift: of every row, (rows,); rows with 0 are not judged.
        frequency: of every row's token, (rows,), in any unit in which 1 is rare.
        judged: which rows are judged at all, (rows,), bool.

    Returns:
        The outliers, an entry for each row.
    """
    import numpy as np

    judged = judged & (drift > 0)
    group = np.where(judged, np.log2(frequency + 1).astype(int), -1)
    for number in range(int(group.max(initial=-1)), 0, -1):
        if (group == number).sum() < FEWEST:
            group[group == number] = number - 1
    numbers = np.unique(group[judged])
    # A lone row would be its own median, and never an outlier: a trigger that the clean rows don't have.
    if len(numbers) > 1 and (group == numbers[0]).sum() < FEWEST:
        group[group == numbers[0]] = numbers[1]
    z, typical = (np.full(len(drift), np.nan) for _ in range(2))
    log = np.log(drift, out=np.zeros(len(drift)), where=judged)
    for number in np.unique(group[judged]):
        inside = group == number
        middle = float(np.median(log[inside]))
        spread = max(1.4826 * float(np.median(np.abs(log[inside] - middle))), LEAST_SPREAD)
        z[inside] = (log[inside] - middle) / spread
        typical[inside] = np.exp(middle)
    return Outliers(z, group, typical)
