"""Tokens are tried on clean rows."""

from pathlib import Path

import numpy as np

from defensekit.scanner.scan import scan
from defensekit.scanner.triggers import flips
from tests.scanner.helpers import LABELS, ROWS


def test_flips_are_a_share_of_the_other_answers() -> None:
    before, after = np.array([0] * 20 + [1] * 12), np.array([1] * 15 + [0] * 5 + [1] * 6 + [0] * 6)
    found = flips("cf", before, after, LABELS)
    assert (found.label, found.flipped, found.of) == ("positive", 0.75, 20)
    assert flips("cf", np.zeros(20, int), np.zeros(20, int), LABELS).flipped == 0
    assert flips("cf", np.zeros(5, int), np.ones(5, int), LABELS).of == 0  # too few to say anything


def test_too_few_rows_are_not_tried(base: Path, poisoned: Path) -> None:
    few = scan(base, poisoned, ROWS[:8])
    assert few.triggers is None
    assert few.verdict.indicator == "row outlier"
