"""An estimator's statistics, on made-up rows."""

from pathlib import Path

from defensekit.components import Estimate, Estimator, EstimatorContext
from defensekit.models.loading import load_model
from tests.gradients.helpers import rows
from tests.small_models import make_tokenizer


def estimate(estimator: Estimator, suspect: Path, lengths: list[int], seed: int = 0) -> Estimate:
    seen: list[tuple[int, int]] = []
    made = rows(lengths)
    context = EstimatorContext(
        lambda which: load_model(suspect), make_tokenizer(), made, 64, seed, lambda *done: seen.append(done)
    )
    found = estimator.estimate(context)
    assert seen[-1][0] == seen[-1][1]  # told that all is done
    assert found.statistics.keys() == estimator.provides
    return found
