"""Checks of filters: a score for every row, whatever the labels, by nothing that is decided after scoring."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from defensekit.components import Filter
from defensekit.defense import filtering
from defensekit.testing.kit import Inapplicable, Mismatch, Subject, check, expect, ordinary_use
from defensekit.testing.pico import PicoModels, sentences
from defensekit.testing.watch import Handed
from defensekit.text import Row
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    import numpy as np


@ordinary_use(Filter)
def suspect_rows(component: Filter, pico: PicoModels, handed: Handed) -> Any:
    """Score the training rows."""
    return component.score(pico.for_filter(component, handed))


def _scores(component: Filter, pico: PicoModels, rows: Sequence[Row] | None = None) -> "np.ndarray":
    try:
        return filtering.score(component, pico.for_filter(component, Handed(), rows))
    except DefenseKitError as error:
        raise Mismatch(str(error)) from error


@check(Filter)
def scores_every_row(subject: Subject) -> None:
    """A score for every row, finite."""
    _scores(subject.component, subject.pico)


@check(Filter)
def scores_rare_labels(subject: Subject) -> None:
    """Rows of a label are scored even if there is a single one, or if all of them are the same."""
    _sound(subject)
    rows = sentences(24)
    for few in (rows[:1], rows[:3], [replace(rows[0], id=row.id) for row in rows]):
        _scores(subject.component, subject.pico, [*few, *(row for row in rows if row.label != few[0].label)])


@check(Filter)
def scores_by_its_own_parameters(subject: Subject) -> None:
    """Scores do not depend on `fraction`, `scope` and `threshold`: they are computed once for all values of these."""
    scores = _sound(subject)
    for changes in ({"fraction": 0.01}, {"fraction": 0.9}, {"scope": "label"}, {"scope": "global"}, {"threshold": 9.0}):
        changed = subject.component.model_copy(update=changes)
        same = _scores(changed, subject.pico).tolist() == scores.tolist()
        expect(same, f"expected the same scores with {changes}, got others")


@check(Filter)
def scores_pairs(subject: Subject) -> None:
    """A pair of texts has one score, as a single text has."""
    _sound(subject)
    _scores(subject.component, subject.pico, [replace(row, pair="the film is long") for row in sentences(24)])


@check(Filter)
def leaves_rows(subject: Subject) -> None:
    """With its own `fraction` or `threshold` it takes some rows at most: others have to be left to train on."""
    scores, labels = _sound(subject), [row.label for row in sentences(24)]
    try:
        filtering.take(subject.component, scores, labels)
    except DefenseKitError:
        hint = "let its `fraction` or `threshold` have another default"
        raise Mismatch(f"expected rows to be left of {len(labels)}, got none: all are taken ({hint})") from None


def _sound(subject: Subject) -> "np.ndarray":
    """The scores, if they are some."""
    try:
        return _scores(subject.component, subject.pico)
    except Mismatch as error:
        raise Inapplicable("it does not score every row: see `scores-every-row`") from error
