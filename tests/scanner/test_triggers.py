"""Tokens are tried on clean rows."""

from pathlib import Path

import numpy as np

from defensekit.scanner.scan import scan
from defensekit.scanner.triggers import flips
from tests.scanner.helpers import LABELS, ROWS


def test_flips_are_a_share_of_the_other_answers() -> None:
    answers = np.eye(2, dtype=bool)
    before, after = answers[[0] * 20 + [1] * 12], answers[[1] * 15 + [0] * 5 + [1] * 6 + [0] * 6]
    found = flips("cf", before, after, LABELS)
    assert (found.label, found.flipped, found.of) == ("positive", 0.75, 20)
    assert flips("cf", answers[[0] * 20], answers[[0] * 20], LABELS).flipped == 0
    assert flips("cf", answers[[0] * 5], answers[[1] * 5], LABELS).of == 0  # too few to say anything


def test_too_few_rows_are_not_tried(base: Path, poisoned: Path) -> None:
    few = scan(base, poisoned, ROWS[:8])
    assert few.triggers is None
    assert few.verdict.indicator == "row outlier"
