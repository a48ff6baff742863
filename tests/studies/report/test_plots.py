"""A study's figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import defensekit
from defensekit.studies.frame import Finished
from defensekit.studies.report.comparing import Comparison
from defensekit.studies.report.plots import heats, plain, tradeoff
from tests.studies.helpers import model, reset, result, write_study
from tests.studies.report.helpers import wide


def test_lines_are_means_and_bands_one_standard_deviation(tmp_path: Path) -> None:
    comparison = Comparison(Finished(wide(tmp_path)))
    group = comparison.groups[1]
    figure = tradeoff(group, comparison.over, ("acc", "asr"))
    everything, first, *_ = figure.axes
    assert len(figure.axes) == 4
    frame = defensekit.results(comparison.study.path)
    mine = frame[frame.trial.notna() & (frame.attack == "sentence") & (frame["defense.scorer"] == "a")]
    means = mine.groupby(["trial", "metric"]).value.mean().unstack()
    drawn = everything.lines[0].get_xydata()
    np.testing.assert_allclose(drawn, means[["acc", "asr"]].to_numpy(float))
    spread = mine.groupby(["trial", "metric"]).value.std().unstack()
    extent = first.patches[0].get_path().get_extents()
    assert extent.x0 == pytest.approx((means.acc - spread.acc).min(), abs=1e-6)
    assert extent.y1 == pytest.approx((means.asr + spread.asr).max(), abs=1e-3)
    [floor] = [line for line in everything.lines if line.get_linestyle() == ":" and len(set(line.get_ydata())) == 1]
    assert floor.get_ydata()[0] == pytest.approx(0.1)
    styles = {(line.get_marker(), line.get_linestyle()) for line in everything.lines[:3]}
    assert len(styles) == 3  # told apart without colour


def test_a_metrics_name_is_no_formula(tmp_path: Path) -> None:
    name = "$x_{$"
    curve = {value: {"acc": 0.9, "asr": 1.0, name: 1 - value} for value in (0.0, 0.9)}
    models = {"purified": model(curve[0.9]), "clean": model(curve[0.9])}
    runs: list[Any] = [({"defense.scorer": each}, 0, result(models, curve, 0.9)) for each in "ab"]
    comparison = Comparison(Finished(write_study(tmp_path / "w/studies/named", runs)))
    for traded in (("acc", name), (name, "acc")):
        tradeoff(comparison.groups[0], comparison.over, traded).draw_without_rendering()


def test_values_beside_points_stay_clear_of_the_title(tmp_path: Path) -> None:
    curve = {0.0: {"acc": 0.9, "asr": 1.0}, 0.9: {"acc": 0.9, "asr": 0.95}}
    runs: list[Any] = [
        ({"defense.scorer": name}, 0, result({"purified": model(curve[0.9])}, curve, 0.9)) for name in "ab"
    ]
    comparison = Comparison(Finished(write_study(tmp_path / "w/studies/high", runs)))
    figure = tradeoff(comparison.groups[0], comparison.over, ("acc", "asr"))
    figure.draw_without_rendering()
    for axes in figure.axes[1:]:
        assert [text.get_text() for text in axes.texts] == ["0.9", "0"]
        assert all(text.get_window_extent().y1 <= axes.bbox.y1 for text in axes.texts)


def test_labels_that_begin_alike_are_lines_of_their_own(tmp_path: Path) -> None:
    comparison = Comparison(Finished(wide(tmp_path, scorers=("x" * 60 + "1", "x" * 60 + "2"))))
    figure = tradeoff(comparison.groups[0], comparison.over, ("acc", "asr"))
    assert len(figure.axes) == 3
    assert len(figure.legends[0].get_texts()) == 5  # two lines, suspect, clean reference, floor


def test_a_group_in_which_nothing_is_done_has_a_figure_without_lines(tmp_path: Path) -> None:
    fractions = [({"defense.selector.fraction": value}, 0, None) for value in (0.1, 0.2)]
    comparison = Comparison(Finished(write_study(tmp_path / "w/studies/none", fractions)))
    assert comparison.over == "defense.selector.fraction"
    assert len(tradeoff(comparison.groups[0], comparison.over, ("acc", "asr")).axes) == 1


def test_the_heat_map_of_a_study_is_the_mean_over_seeds() -> None:
    one, other = reset({"l.0.q": (10, 10, 2), "l.1.q": (10, 0, 0)}), reset({"l.0.q": (10, 10, 6), "l.1.q": (10, 0, 0)})
    figure = heats({"a": [one, other]}, "title")
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    assert shown[0, 0] == pytest.approx(0.4)
    assert np.ma.getmaskarray(shown)[0, 1]


def test_a_label_is_text_in_a_figure() -> None:
    assert plain("$x^{") == r"\$x^{"
    assert plain("a\n" + "b" * 100) == "a " + "b" * 37 + "…"
