"""A study's results as tables, against the dumbest arithmetic."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit.studies.frame import Finished
from defensekit.studies.report.pivot import pivot
from defensekit.studies.report.table import TableCell
from defensekit.utils.errors import UsageError
from tests.studies.helpers import ATTACK, FRACTION, SCORER, ended, model, result, write_study
from tests.studies.report.helpers import texts


def test_cells_are_means_and_spreads_over_seeds(study: Path) -> None:
    table = pivot(Finished(study))
    assert table.heads == ("model", SCORER)
    assert [(c.group, c.title, c.better, c.floor) for c in table.columns[:4]] == [
        ("word", "ACC", "higher", None),
        ("word", "ASR", "lower", pytest.approx(0.1)),
        ("sentence", "ACC", "higher", None),
        ("sentence", "ASR", "lower", pytest.approx(0.1)),
    ]
    assert texts(table) == {
        ("clean reference", "–"): ["0.900 ± 0.000", "0.100 ± 0.000"] * 2 + ["80 ± 0", "–"],
        ("suspect", "–"): ["0.880 ± 0.000", "1.000 ± 0.000"] * 2 + ["70 ± 0", "–"],
        ("purified", "diffusion"): ["0.810 ± 0.010", "0.200 ± 0.000", "0.810 ± 0.010", "0.300 ± 0.000", "10 ± 0", "–"],
        ("purified", "random"): [
            "0.700 (n=1, 1 failed, 1 missing)",
            "0.500 (n=1, 1 failed, 1 missing)",
            "–",
            "–",
            "10 (n=1)",
            "–",
        ],
    }
    assert [row.oracle for row in table.rows] == ["", "", "", "oracle-floor"]
    notes = " ".join(table.notes)
    assert "n = 3 seeds" in notes
    assert "Of 9 runs, 1 failed and 1 missing" in notes


def test_a_model_of_one_answer_is_marked(tmp_path: Path) -> None:
    runs: list[Any] = []
    for scorer in ("a", "b"):
        for seed in (0, 1):
            models = {name: model({"acc": 0.9, "asr": 0.1}) for name in ("clean", "suspect", "purified")}
            models["purified"].only = "positive" if (scorer, seed) == ("b", 1) else None
            runs.append(({SCORER: scorer}, seed, result(models)))
    finished = Finished(write_study(tmp_path / "workspace/studies/made-up", runs))
    table = pivot(finished)
    assert [row.labels for row in table.rows][2:] == [("purified", "a"), ("purified ‡", "b")]
    assert any(note.startswith("‡ gives every plain test row the same answer") for note in table.notes)
    assert set(finished.frame.dropna(subset="only")["run"]) == {finished.runs[3].id}


def test_any_axis_may_be_rows_or_columns(study: Path) -> None:
    table = pivot(Finished(study), rows=[ATTACK], cols=[SCORER], metrics=["asr"])
    assert [column.group for column in table.columns[:2]] == ["diffusion", "random"]
    assert [(row.labels, table.text(row.cells[0], table.columns[0])) for row in table.rows] == [
        (("clean reference", "word"), "0.100 ± 0.000"),
        (("suspect", "word"), "1.000 ± 0.000"),
        (("purified", "word"), "0.200 ± 0.000"),
        (("clean reference", "sentence"), "0.100 ± 0.000"),
        (("suspect", "sentence"), "1.000 ± 0.000"),
        (("purified", "sentence"), "0.300 ± 0.000"),
    ]


def test_nothing_is_averaged_over_but_seeds(tmp_path: Path) -> None:
    runs = [
        ({SCORER: scorer, FRACTION: fraction, ATTACK: "word"}, 0, ended(fraction, 0.5))
        for scorer in ("a", "b")
        for fraction in (0.25, 0.5)
    ]
    study = Finished(write_study(tmp_path / "studies/fractions", runs))
    table = pivot(study, rows=[SCORER])
    assert table.heads == ("model", SCORER, FRACTION)
    assert [row.cells[0].values for row in table.rows[2:]] == [(0.25,), (0.5,)] * 2
    fixed = pivot(study, rows=[SCORER], where={FRACTION: "0.5"})
    assert [(row.labels, row.cells[0].values) for row in fixed.rows[2:]] == [
        (("purified", "a"), (0.5,)),
        (("purified", "b"), (0.5,)),
    ]
    assert "One seed." in fixed.notes


def test_an_axis_of_variants_is_the_defenses_if_it_changes_nothing_else(tmp_path: Path) -> None:
    matrix = {
        "tuned": {"yes": {"defense.purifier": [], "defense.choose": None}},
        "harm": {"more": {"defense.scorer": "a", "attack.rate": 0.5}},
    }
    runs = [({"tuned": "yes", "harm": "more"}, 0, None)]
    assert Finished(write_study(tmp_path / "studies/v", runs, matrix)).defenses == {"tuned"}


def test_a_run_beside_the_matrix_is_as_the_recipe_on_axes_it_does_not_name(tmp_path: Path) -> None:
    runs: list[Any] = [({SCORER: "a"}, 0, ended(0.8, 0.2)), ({"defense.estimator": "b"}, 0, ended(0.7, 0.3))]
    found = texts(pivot(Finished(write_study(tmp_path / "studies/beside", runs)), metrics=["acc"]))
    assert found["purified", "a", "as the recipe"][0] == "0.800"
    assert found["purified", "as the recipe", "b"][0] == "0.700"


def test_an_oracle_among_others_is_marked_where_it_is(tmp_path: Path) -> None:
    runs: list[Any] = [
        ({SCORER: "a", ATTACK: "word"}, 0, ended(0.8, 0.2)),
        ({SCORER: "b", ATTACK: "word"}, 0, ended(0.7, 0.1, oracle=["oracle-floor"], chosen=0.5)),
    ]
    study = Finished(write_study(tmp_path / "studies/oracle", runs))
    table = pivot(study, rows=[ATTACK], cols=[SCORER], metrics=["asr"])
    assert texts(table)["purified", "word"][:2] == ["0.200", "0.100 (oracle)"]
    assert texts(table)["suspect", "word"][:2] == ["1.000", "1.000"]
    assert "oracle" in " ".join(table.notes)
    assert [row.oracle for row in pivot(study).rows] == ["", "", "", "oracle-floor"]


def test_what_defenses_share_is_known_from_any_of_them(tmp_path: Path) -> None:
    runs: list[Any] = [({SCORER: "a", ATTACK: "word"}, 0, None), ({SCORER: "b", ATTACK: "word"}, 0, ended(0.7, 0.1))]
    table = pivot(Finished(write_study(tmp_path / "studies/shared", runs)), rows=[ATTACK], cols=[SCORER])
    found = texts(table)
    assert found["clean reference", "word"][:4] == ["0.900", "0.100"] * 2
    assert found["purified", "word"][:2] == ["1 missing"] * 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rows": ["defense.score"]}, r"no axis 'defense.score'. Did you mean 'defense.scorer'\? \(axes: "),
        ({"metrics": ["acx"]}, r"no metric 'acx'. Did you mean 'acc'\?"),
        ({"models": ["purfied"]}, r"no model 'purfied'. Did you mean 'purified'\?"),
        ({"where": {ATTACK: "wrd"}}, r"has no value 'wrd'. Did you mean 'word'\? \(values: word, sentence\)"),
        ({"where": {ATTACK: "sentence", SCORER: "random"}}, "no run has attack.name = sentence and defense.scorer = r"),
        ({"rows": [SCORER], "cols": [SCORER]}, "can't be both rows and columns"),
    ],
)
def test_what_is_not_there_is_told_with_what_is_close(study: Path, asked: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pivot(Finished(study), **asked)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_mean_and_spread_are_those_of_the_textbook(values: list[float]) -> None:
    cell = TableCell(tuple(values))
    mean = sum(values) / len(values)
    assert cell.mean == pytest.approx(mean)
    if len(values) == 1:
        assert cell.spread is None
    else:
        assert cell.spread == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)))
