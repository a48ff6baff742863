"""Checks of estimators: valid statistics, which do not depend on the batches."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from defensekit.components import Estimator
from defensekit.defense import estimation
from defensekit.testing.kit import Inapplicable, Subject, check, expect, ordinary_use
from defensekit.testing.pico import MAX_LENGTH, PicoModels
from defensekit.testing.watch import Handed
from defensekit.text import Row

if TYPE_CHECKING:
    from torch import Tensor

    Statistics = Mapping[str, Mapping[str, Tensor]]

TOLERANCE = 1e-3  # of a tensor's norm, float32 against float64


@ordinary_use(Estimator)
def estimate(estimator: Estimator, pico: PicoModels, handed: Handed) -> Any:
    """Measure the statistics of the pico model."""
    return estimator.estimate(pico.for_estimator(estimator, handed))


@check(Estimator)
def gives_what_it_provides(subject: Subject) -> None:
    """Every statistic in `provides`, in the shapes of the model's weights, finite; a curvature is never negative."""
    estimator: Estimator = subject.component
    expect(estimator.provides, "expected `provides` to name a statistic, got none")
    pico = subject.pico
    measured = estimation.estimate(
        pico.pair, estimator, pico.rows, max_length=MAX_LENGTH, seed=7, report=lambda done, total: None
    )
    for name, values in measured.statistics.get("curvature", {}).items():
        expect(bool((values >= 0).all()), f"expected a curvature of at least 0, got {float(values.min()):g} in {name}")


@check(Estimator)
def ignores_batch_size(subject: Subject) -> None:
    """Batches of one row, of three or of all give the same statistics."""
    whole = subject.used.result.statistics
    for limit in (1, 3):
        what = f"with at most {limit} rows in a batch"
        _close(_statistics(subject, limit=limit), whole, what, "with all rows in one")


@check(Estimator)
def ignores_order(subject: Subject) -> None:
    """The rows in another order give the same statistics."""
    rows = list(reversed(subject.pico.rows))
    _close(
        _statistics(subject, rows), subject.used.result.statistics, "of the rows reversed", "of the rows as they came"
    )


@check(Estimator)
def agrees_with_its_reference(subject: Subject) -> None:
    """On a model with tied layers it agrees with the reference, computed row by row in float64."""
    if subject.reference is None:
        raise Inapplicable("no reference= was given, the same statistics by the simplest code (see `fisher_by_loop`)")
    model = subject.pico.load()[0].double().eval()
    wanted = subject.reference(model, subject.pico.samples())
    _close(subject.used.result.statistics, wanted, "on the tied model", "by the reference")


def _statistics(subject: Subject, rows: Sequence[Row] | None = None, limit: int | None = None) -> "Statistics":
    estimator: Estimator = subject.component
    measured = estimator.estimate(subject.pico.for_estimator(estimator, Handed(), rows, limit))
    statistics: Statistics = measured.statistics
    return statistics


def _close(got: "Statistics", wanted: "Statistics", what: str, against: str) -> None:
    for statistic, tensors in wanted.items():
        largest = max(float(tensor.double().norm()) for tensor in tensors.values())
        for name, tensor in tensors.items():
            here = got.get(statistic, {}).get(name)
            expect(here is not None, f"expected {statistic} of {name} {what}, got none")
            assert here is not None
            scale = max(float(tensor.double().norm()), 1e-4 * largest, 1e-300)
            off = float((here.double() - tensor.double()).norm()) / scale
            sums = f"{float(here.double().sum()):.6g} {what}, {float(tensor.double().sum()):.6g} {against}"
            expect(off <= TOLERANCE, f"{statistic} of {name} is off by {off:.2g} of its norm (sums: {sums})")
