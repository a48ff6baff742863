"""How well a detector tells triggered rows from plain ones, and what is left of a suspect behind it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING

from defensekit.components import Measured, Predictions
from defensekit.defense.detecting import SCORES
from defensekit.result.schema import OperatingPoint

if TYPE_CHECKING:
    import numpy as np

RATES = (0.01, 0.05)  # false-positive rates that thresholds are set at
RESAMPLES = 1000
_AT_ONCE = 100  # resamples that are in memory

# Of scores of triggered and of plain rows, (..., rows) each, a number: (...).
Statistic = Callable[["np.ndarray", "np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class Scored:
    """``scores`` (rows,) of rows, and which rows they are: ``ids`` (rows,)."""

    scores: "np.ndarray"
    ids: "np.ndarray"


def read_scores(folder: Path) -> Scored:
    """Read the scores of a stage."""
    from safetensors.numpy import load_file

    return Scored(**load_file(folder / SCORES))


def threshold(clean: "np.ndarray", rate: float) -> "np.ndarray":
    """The least of the clean scores (..., rows) that at most a share ``rate`` of them is above: (...)."""
    import numpy as np

    rows = clean.shape[-1]
    above = floor(rate * rows + 1e-9)  # 0.29 * 100 is a little less than 29
    limits: np.ndarray = np.sort(clean, axis=-1)[..., rows - 1 - above]
    return limits


def auroc(triggered: "np.ndarray", plain: "np.ndarray") -> "np.ndarray":
    """The probability that a triggered row has a higher score than a plain one, ties counting half."""
    import numpy as np
    from scipy.stats import rankdata

    rows, others = triggered.shape[-1], plain.shape[-1]
    ranks = rankdata(np.concatenate([triggered, plain], axis=-1), axis=-1)[..., :rows]
    area: np.ndarray = (ranks.sum(-1) - rows * (rows + 1) / 2) / (rows * others)
    return area


def true_positives(rate: float, triggered: "np.ndarray", plain: "np.ndarray") -> "np.ndarray":
    """The share of triggered rows above the threshold that at most a share ``rate`` of the plain ones is above."""
    share: np.ndarray = (triggered > threshold(plain, rate)[..., None]).mean(-1)
    return share


def on_pairs(statistic: Statistic, triggered: Scored, plain: Scored, seed: int) -> Measured:
    """A statistic on the same rows with and without the trigger, with a percentile bootstrap over the rows.

    A row is drawn together with its twin. Triggered rows that come from a file have none: all plain rows count, and
    both sides are drawn.
    """
    import numpy as np

    position = {row: i for i, row in enumerate(plain.ids.tolist())}
    paired = all(row in position for row in triggered.ids.tolist())
    ours = triggered.scores
    theirs = plain.scores[[position[row] for row in triggered.ids.tolist()]] if paired else plain.scores
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // _AT_ONCE):
        rows = rng.integers(len(ours), size=(_AT_ONCE, len(ours)))
        twins = rows if paired else rng.integers(len(theirs), size=(_AT_ONCE, len(theirs)))
        drawn.append(statistic(ours[rows], theirs[twins]))
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    return Measured(value=float(statistic(ours, theirs)), low=float(low), high=float(high), rows=len(ours))


def operating_points(
    scored: Mapping[str, Scored], metrics: "Callable[[Mapping[str, np.ndarray]], dict[str, Measured]]", seed: int
) -> list[OperatingPoint]:
    """What a detector flags at each of the rates, by a threshold from held-out clean rows.

    Args:
        scored: the scores of ``held-out`` clean rows, of ``plain`` test rows and, if there are any, ``triggered`` ones.
        metrics: measures the suspect where the rows with these ids, by the rows, are not answered.
        seed: of the intervals.
    """
    points = []
    for rate in RATES:
        limit = float(threshold(scored["held-out"].scores, rate))
        above = {on: one.scores > limit for on, one in scored.items()}
        caught = None
        if "triggered" in scored:
            caught = on_pairs(partial(true_positives, rate), scored["triggered"], scored["plain"], seed)
        points.append(
            OperatingPoint(
                rate=rate,
                threshold=limit,
                flagged={on: float(flags.mean()) for on, flags in above.items()},
                tpr=caught,
                metrics=metrics({on: one.ids[above[on]] for on, one in scored.items()}),
            )
        )
    return points


def unanswered(predictions: Predictions, flagged: "Mapping[str, np.ndarray]", on: str) -> Predictions:
    """Predictions where rows with some ids, by the rows, get an answer of their own, which no row has for a label."""
    import numpy as np

    assert predictions.ids is not None
    out = np.isin(predictions.ids, flagged["plain" if on == "plain" else "triggered"])
    logits = np.where(out[:, None], -np.inf, predictions.logits)
    withheld = np.where(out, 0.0, -np.inf)[:, None]
    plain = unanswered(predictions.plain, flagged, "plain") if predictions.plain else None
    logits = np.concatenate([logits, withheld], axis=1).astype(predictions.logits.dtype)
    return replace(predictions, logits=logits, names=(*predictions.names, "not answered"), plain=plain)
