"""Two models on the same test rows, from their stored answers."""

from collections.abc import Sequence
from re import fullmatch
from typing import TYPE_CHECKING

from defensekit.components import Metric
from defensekit.pipeline.predictions import read_for
from defensekit.pipeline.store import Store
from defensekit.recipe.resolve import component
from defensekit.result.schema import Result
from defensekit.studies.frame import Finished
from defensekit.utils.errors import DefenseKitError, UsageError

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000


class Stored:
    """The answers that the runs of a study left in its workspace."""

    def __init__(self, study: Finished) -> None:
        self.study = study
        self.store = Store(study.path.parents[1] / "store")
        self.results: dict[str, Result] = {}

    def row_values(self, run: str, trial: float | None, metric: str) -> "tuple[np.ndarray, str] | None":
        """The values of the rows that count for a metric, (rows,), and a key of these rows.

        Args:
            run: its id.
            trial: the value that the rule tried; None for the model that the run ended with.
            metric: its name.

        Returns:
            None where the metric is no mean over rows, or the answers are not in the store.
        """
        if run not in self.results:
            self.results[run] = self.study.result(run)
        result = self.results[run]
        measure = self._metric(result, metric)
        if measure is None:
            return None
        model = result.models[result.defended]
        trials = {tried.value: tried.predictions for tried in result.curve}
        keys = model.predictions if trial is None else trials.get(trial, {})
        target = (result.attack or {}).get("target")
        if measure.about == "backdoor" and target is None:
            return None
        try:
            needed = {
                on: keys.get(on, "") for on in (("plain", "triggered") if measure.on == "both" else (measure.on,))
            }
            folders = {on: self.store.open(key).files for on, key in needed.items() if fullmatch(r"[0-9a-f]{64}", key)}
            predictions = read_for(measure.on, folders, target=target)
        except (DefenseKitError, OSError):  # it was pruned, or the folder was copied without its store
            return None
        values = None if predictions is None else measure.row_values(predictions)
        rows = result.test_rows.get("triggered" if measure.on == "both" else measure.on, "")
        return None if values is None else (values, rows)

    def _metric(self, result: Result, name: str) -> Metric | None:
        """A metric as the recipe has it; None where its plugin is not installed here."""
        spec = next((spec for spec in result.recipe["metrics"] if spec["name"] == name), {"name": name})
        try:
            measure: Metric = component(Metric, spec)
            return measure
        except UsageError:
            return None


def bootstrap(differences: "Sequence[np.ndarray]", seed: int = 0) -> tuple[float, float]:
    """95 % of the mean over seeds of the mean of paired differences, when each seed's rows are drawn anew.

    The percentile bootstrap (Efron 1979), within each seed. A row's difference is one of a few whole numbers, so that
    to resample rows is to draw their counts from a multinomial.

    Args:
        differences: per seed, (rows,) of whole numbers.
        seed: of the draws.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    means = sum(resampled(values, rng) for values in differences) / len(differences)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def resampled(values: "np.ndarray", rng: "np.random.Generator") -> "np.ndarray":
    """The means of rows that are drawn anew, (RESAMPLES,).

    Args:
        values: (rows,) of whole numbers.
        rng: draws.
    """
    import numpy as np

    levels, counts = np.unique(values, return_counts=True)
    means: np.ndarray = rng.multinomial(len(values), counts / len(values), RESAMPLES) @ levels / len(values)
    return means
