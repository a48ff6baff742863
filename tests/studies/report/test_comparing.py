"""Defenses compared: matched, seed by seed, and with intervals that cover."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensekit.studies.frame import Finished
from defensekit.studies.report.comparing import Comparison
from defensekit.studies.report.pairing import bootstrap
from defensekit.utils.errors import UsageError
from tests.studies.helpers import FRACTION, SCORER, ended, write_study
from tests.studies.report.helpers import texts


def curves(tmp_path: Path) -> Comparison:
    """Two scorers with curves on two seeds; the suspect has an ACC of 0.88."""
    tried = {
        ("a", 0): {0.3: (0.875, 0.9), 0.5: (0.87, 0.6), 0.7: (0.84, 0.2)},
        ("a", 1): {0.3: (0.88, 0.8), 0.5: (0.86, 0.5), 0.7: (0.8, 0.1)},
        ("b", 0): {0.3: (0.86, 0.9), 0.5: (0.872, 0.7), 0.7: (0.82, 0.3)},
        ("b", 1): {0.3: (0.82, 0.9), 0.5: (0.8, 0.7), 0.7: (0.8, 0.3)},
    }
    runs = []
    for (scorer, seed), points in tried.items():
        curve = {value: {"acc": acc, "asr": asr} for value, (acc, asr) in points.items()}
        runs.append(({SCORER: scorer}, seed, ended(*points[0.5], curve=curve, chosen=0.5)))
    return Comparison(Finished(write_study(tmp_path / "studies/curves", runs)))


def test_matched_is_the_largest_value_that_is_close_enough(tmp_path: Path) -> None:
    found = texts(curves(tmp_path).matched())
    assert found == {
        ("clean reference", "–"): ["–", "0.900 ± 0.000", "0.100 ± 0.000"],
        ("suspect", "–"): ["–", "0.880 ± 0.000", "1.000 ± 0.000"],
        ("accuracy-floor", "a"): ["0.50 ± 0.00", "0.865 ± 0.007", "0.550 ± 0.071"],
        ("accuracy-floor", "b"): ["0.50 ± 0.00", "0.836 ± 0.051", "0.700 ± 0.000"],
        ("oracle-matched, 1 point", "a"): ["0.40 ± 0.14", "0.875 ± 0.007", "0.700 ± 0.141"],
        ("oracle-matched, 1 point", "b"): [
            "0.50 (n=1, none on 1)", "0.872 (n=1, none on 1)", "0.700 (n=1, none on 1)",
        ],
        ("oracle-matched, 2 points", "a"): ["0.50 ± 0.00", "0.865 ± 0.007", "0.550 ± 0.071"],
        ("oracle-matched, 2 points", "b"): [
            "0.50 (n=1, none on 1)", "0.872 (n=1, none on 1)", "0.700 (n=1, none on 1)",
        ],
        ("oracle-matched, 5 points", "a"): ["0.60 ± 0.14", "0.850 ± 0.014", "0.350 ± 0.212"],
        ("oracle-matched, 5 points", "b"): [
            "0.50 (n=1, none on 1)", "0.872 (n=1, none on 1)", "0.700 (n=1, none on 1)",
        ],
    }  # fmt: skip


def test_an_axis_of_fractions_is_matched_as_a_curve_is(tmp_path: Path) -> None:
    runs: list[Any] = [
        ({SCORER: scorer, FRACTION: fraction}, seed, ended(0.9 - fraction * worse, 1 - fraction))
        for scorer, worse in (("a", 0.05), ("b", 0.2))
        for fraction in (0.2, 0.4, 0.8)
        for seed in (0, 1)
    ]
    runs[-1] = (*runs[-1][:2], None)
    comparison = Comparison(Finished(write_study(tmp_path / "studies/axis", runs)))
    assert comparison.over == FRACTION
    found = texts(comparison.matched())
    assert "as run" not in {row[0] for row in found}
    assert found["oracle-matched, 2 points", "a"][0] == "0.80 ± 0.00"
    # b: 0.9 - 0.2 x 0.2 = 0.86 is within 2 points of 0.88; a run of seed 1 is missing, and it may have been one more.
    assert found["oracle-matched, 2 points", "b"][0] == "0.20 ± 0.00 (n=2, 1 missing)"
    assert comparison.middle == 0.4


def test_differences_are_seed_by_seed_and_say_what_seeds_can_not(tmp_path: Path) -> None:
    comparison = curves(tmp_path)
    table = comparison.differences()
    found = texts(table)
    assert found["accuracy-floor", "b"] == ["-0.029 ± 0.044; +0.002, -0.060", "+0.150 ± 0.071; +0.100, +0.200"]
    assert found["oracle-matched, 1 point", "b"][0] == "+0.002 (n=1, none on 1)"
    notes = " ".join(table.notes)
    assert "2 seeds carry no rank test: the smallest p that they could give is 0.5." in notes
    assert "Where no interval stands, the stored answers are not in the workspace" in notes
    assert texts(comparison.differences("b"))["accuracy-floor", "a"][0].startswith("+0.029")
    with pytest.raises(UsageError, match=r"no defense 'c'. \(defenses: a, b\)"):
        comparison.differences("c")


def test_the_bootstrap_is_the_one_that_draws_rows() -> None:
    rng = np.random.default_rng(0)
    pairs = [rng.choice([-1, 0, 1], size=rows, p=[0.1, 0.6, 0.3]) for rows in (200, 150, 300)]
    draws = []
    for _ in range(2000):
        draws.append(statistics.fmean(float(rng.choice(found, len(found)).mean()) for found in pairs))
    low, high = bootstrap(pairs)
    expected = np.quantile(draws, [0.025, 0.975])
    assert (low, high) == (pytest.approx(expected[0], abs=0.006), pytest.approx(expected[1], abs=0.006))
    assert low < np.mean([found.mean() for found in pairs]) < high
    assert bootstrap(pairs) == (low, high)


def test_an_interval_covers_what_it_should() -> None:
    rng = np.random.default_rng(1)
    covered = [
        low <= 0.2 <= high
        for low, high in (bootstrap([rng.choice([-1, 0, 1], 250, p=[0.1, 0.6, 0.3])]) for _ in range(200))
    ]
    assert 0.9 <= np.mean(covered) <= 0.99


def test_a_number_that_is_no_share_has_no_interval_and_no_note_of_missing_answers(tmp_path: Path) -> None:
    runs = []
    for scorer, acc in (("a", 0.8), ("b", 0.9)):
        made = ended(acc, 0.1)
        metrics = {name: record.model_copy(update={"is_mean": False}) for name, record in made.metrics.items()}
        runs.append(({SCORER: scorer}, 0, made.model_copy(update={"metrics": metrics})))
    comparison = Comparison(Finished(write_study(tmp_path / "studies" / "s", runs)))
    [row] = comparison.differences().rows
    assert row.cells[0].interval is None
    assert not comparison.unpaired


def test_of_an_axis_of_thresholds_the_lowest_is_matched(tmp_path: Path) -> None:
    """Lower values do more: of those that keep the ACC, the highest does nothing."""
    runs: list[Any] = [
        ({"defense.selector.above": above}, 0, ended(0.9, asr)) for above, asr in ((1.0, 0.1), (2.0, 0.5), (4.0, 0.99))
    ]
    for _, _, one in runs:
        one.recipe["defense"] = {"selector": {"name": "threshold", "above": 1.0}}
    comparison = Comparison(Finished(write_study(tmp_path / "studies/axis", runs)))
    cells = next(cells for (choice, _), cells in texts(comparison.matched()).items() if choice.endswith("2 points"))
    assert cells[0] == "1.00"
