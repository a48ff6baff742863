"""What a study's detectors and filters found: in its frame, its tables and on its page, against numbers known before.

A study over `defense.detectors` or `defense.filter` asks for little else.
"""

from pathlib import Path
from typing import Any

import pytest

import defensekit
from defensekit.components import Measured
from defensekit.result.schema import DetectorResult, Filtered, OperatingPoint, Result
from defensekit.studies.frame import Finished, export
from defensekit.studies.report.found import detectors, filters
from defensekit.studies.report.page import report
from tests.studies.helpers import ended, model, result, write_study
from tests.studies.report.helpers import texts

DETECTORS, FILTER = "defense.detectors.0", "defense.filter"


def share(value: float) -> Measured:
    return Measured(value=value, low=value - 0.05, high=value + 0.05, rows=60)


def watched(name: str, area: float | None, tpr: float, seed: int) -> Result:
    """A result with a detector at two thresholds."""
    points = [
        OperatingPoint(
            rate=rate,
            threshold=1.0,
            flagged={"held-out": rate, "plain": rate + 0.01 * seed, "triggered": tpr},
            tpr=None if area is None else share(tpr + rate),
            metrics={"acc": share(0.8 - rate)},
        )
        for rate in (0.01, 0.05)
    ]
    one = DetectorResult(
        auroc=None if area is None else share(area), points=points, milliseconds=1.5, seconds=9.0, scores={}
    )
    return ended(0.8, 0.3).model_copy(update={"detectors": {name: one}})  # type: ignore[no-any-return]


def of_detectors(place: Path, area: float | None = 0.9) -> Path:
    runs: list[Any] = [
        ({DETECTORS: name}, seed, watched(name, area and area - 0.1 * (name == "rap"), 0.5, seed))
        for name in ("strip", "rap")
        for seed in (0, 1)
    ]
    runs[3] = (*runs[3][:2], "out of memory")
    return write_study(place / "studies/detectors", runs)


def of_filters(place: Path, name: str = "cube") -> Path:
    def taken(precision: float | None) -> Result:
        found = Filtered(rows=100, taken=12, poisoned=10, precision=precision, recall=0.6, auroc=0.75)
        models = {"clean": model({"acc": 0.9, "asr": 0.1}), "suspect": model({"acc": 0.9, "asr": 1.0})}
        return result({**models, "filtered": model({"acc": 0.8, "asr": 0.2}).model_copy(update={"filtered": found})})

    return write_study(place / "studies/filters", [({FILTER: name}, seed, taken(0.5)) for seed in (0, 1)])


def test_a_detector_has_rows_of_its_own_and_no_model(tmp_path: Path) -> None:
    frame = defensekit.results(of_detectors(tmp_path))
    own = frame[frame.detector.notna()]
    assert own.model.isna().all()
    assert frame[frame.detector.isna() & (frame.state == "done")].model.notna().all()
    first = own[(own.detector == "rap")]
    [area] = first[first.metric == "auroc"][["value", "low", "high", "rows"]].values.tolist()
    assert area == pytest.approx([0.8, 0.75, 0.85, 60])
    at = first[first.false_positives == 0.05].set_index("metric")
    assert at.value.to_dict() == {"tpr": 0.55, "acc": 0.75}
    assert (set(at.flagged), set(first.seconds)) == ({0.05}, {9.0})
    written = export(tmp_path / "studies/detectors", tmp_path / "out")[0].read_text().splitlines()
    assert sum(",tpr," in line for line in written) == 6


def test_the_models_table_is_the_same_with_detectors_and_without(tmp_path: Path) -> None:
    found = report(of_detectors(tmp_path))
    assert [column.title for column in found.main.columns] == ["ACC", "ASR", "seconds", "memory, MiB"]


def test_detectors_have_a_table_at_each_threshold(tmp_path: Path) -> None:
    table = detectors(Finished(of_detectors(tmp_path)))
    assert table
    assert [column.title for column in table.columns] == ["AUROC", "TPR", "flagged, plain", "ACC"]
    assert table.heads == ("detector", "FPR", DETECTORS)
    both, one = "0.900 ± 0.000", "0.800 (n=1, 1 failed)"
    assert texts(table) == {
        ("strip", "1%", "strip"): [both, "0.510 ± 0.000", "0.015 ± 0.007", "0.790 ± 0.000"],
        ("strip", "5%", "strip"): [both, "0.550 ± 0.000", "0.055 ± 0.007", "0.750 ± 0.000"],
        ("rap", "1%", "rap"): [one, "0.510 (n=1, 1 failed)", "0.010 (n=1, 1 failed)", "0.790 (n=1, 1 failed)"],
        ("rap", "5%", "rap"): [one, "0.550 (n=1, 1 failed)", "0.050 (n=1, 1 failed)", "0.750 (n=1, 1 failed)"],
    }
    assert len((detectors(Finished(tmp_path / "studies/detectors"), {DETECTORS: "strip"}) or table).rows) == 2


def test_without_triggered_rows_a_detector_has_what_is_flagged_alone(tmp_path: Path) -> None:
    table = detectors(Finished(of_detectors(tmp_path, None)))
    assert table
    assert texts(table)["strip", "1%", "strip"] == ["–", "–", "0.015 ± 0.007", "0.790 ± 0.000"]


def test_what_a_filter_took_is_beside_its_model(tmp_path: Path) -> None:
    frame = defensekit.results(of_filters(tmp_path))
    of = frame[frame.model == "filtered"]
    assert of[["taken", "poisoned", "precision", "recall", "filter_auroc"]].drop_duplicates().values.tolist() == [
        [12, 10, 0.5, 0.6, 0.75]
    ]
    assert frame[frame.model != "filtered"].taken.isna().all()
    table = filters(Finished(tmp_path / "studies/filters"))
    assert table
    assert texts(table) == {("filtered",): ["12 ± 0", "10 ± 0", "0.500 ± 0.000", "0.600 ± 0.000", "0.750 ± 0.000"]}


def test_the_page_shows_both_escaped_and_neither_where_there_is_none(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    study = write_study(tmp_path / "studies/evil", [({}, 0, watched(evil, 0.9, 0.5, 0))])
    page = report(study).page()
    assert 'id="detectors"' in page
    assert "AUROC and TPR compare the same test rows" in page
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in page
    assert 'id="filters"' in report(of_filters(tmp_path)).page()
    plain = report(write_study(tmp_path / "studies/plain", [({}, 0, ended(0.8, 0.3))]))
    assert (plain.detectors, plain.filters) == (None, None)
    assert not {'id="detectors"', 'id="filters"'} & {*plain.page().split()}
