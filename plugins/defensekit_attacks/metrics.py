"""Accuracy, and how often a trigger works."""

from typing import ClassVar, Literal

from defensekit.api import Measured, Metric, Predictions


def share(hits: int, rows: int) -> Measured:
    """A share with Wilson's 95 % interval."""
    from scipy.stats import binomtest

    interval = binomtest(hits, rows).proportion_ci(method="wilson")
    return Measured(value=hits / rows, low=float(interval.low), high=float(interval.high), rows=rows)


class Accuracy(Metric):
    """ACC: the share of clean test rows answered with their true label."""

    on: ClassVar[Literal["plain", "triggered"]] = "plain"

    def measure(self, predictions: Predictions) -> Measured:
        return share(int((predictions.answers() == predictions.labels).sum()), len(predictions.labels))


class AttackSuccess(Metric):
    """ASR: the share of triggered test rows of other labels that are answered with the target."""

    on: ClassVar[Literal["plain", "triggered"]] = "triggered"

    def measure(self, predictions: Predictions) -> Measured:
        eligible = predictions.labels != predictions.target
        hits = (predictions.answers() == predictions.target) & eligible
        return share(int(hits.sum()), int(eligible.sum()))
