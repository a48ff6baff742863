"""A study's results as a frame and as tables, against numbers known beforehand and the dumbest arithmetic."""

import math
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import defensekit
from defensekit.studies.frame import Finished, export
from defensekit.studies.report.comparing import Comparison
from defensekit.studies.report.markup import html, latex, markdown
from defensekit.studies.report.pairing import bootstrap
from defensekit.studies.report.pivot import Cell, Column, Row, Table, pivot
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.studies import id_of, model, result, write_study

SCORER, ATTACK, FRACTION = "defense.scorer", "attack.name", "defense.selector.fraction"
EVIL = '<b onclick="x()">a|b</b> & $x_1$ \\input{/etc/passwd} `c` [l](u) %\n# ~^{}*'


def ended(acc: float, asr: float, **others: Any) -> Any:
    """A result whose purified model has these metrics."""
    models = {
        "clean": model({"acc": 0.9, "asr": 0.1}, seconds=80),
        "suspect": model({"acc": 0.88, "asr": 1.0}, seconds=70),
        "purified": model({"acc": acc, "asr": asr}),
    }
    return result(models, **others)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two scorers against two attacks with three seeds; one run failed, one is missing, one cell was left out."""
    runs: list[Any] = []
    for attack, step in (("word", 0.0), ("sentence", 0.1)):
        for seed in range(3):
            runs.append(({SCORER: "diffusion", ATTACK: attack}, seed, ended(0.8 + 0.01 * seed, 0.2 + step)))
    runs.append(({SCORER: "random", ATTACK: "word"}, 0, ended(0.7, 0.5, oracle=["oracle-floor"], chosen=0.5)))
    runs.append(({SCORER: "random", ATTACK: "word"}, 1, "out of memory"))
    runs.append(({SCORER: "random", ATTACK: "word"}, 2, None))
    return write_study(tmp_path / "studies" / "two", runs)


def texts(table: Table) -> dict[tuple[str, ...], list[str]]:
    return {row.labels: [table.text(c, k) for c, k in zip(row.cells, table.columns, strict=True)] for row in table.rows}


# -- the frame ---------------------------------------------------------------------------------------------------------


def test_every_run_model_and_metric_is_a_row(study: Path) -> None:
    frame = defensekit.results(study)
    assert len(frame) == 7 * 3 * 2 + 2
    assert list(frame.columns[:7]) == ["study", "run", "seed", "state", "error", SCORER, ATTACK]
    assert not frame.duplicated(["run", "model", "metric", "trial"]).any()
    [row] = frame[(frame[SCORER] == "diffusion") & (frame[ATTACK] == "sentence") & (frame.seed == 2)][
        lambda found: (found.model == "purified") & (found.metric == "acc")
    ].itertuples()
    assert (row.value, row.low, row.high, row.rows) == (
        pytest.approx(0.82),
        pytest.approx(0.77),
        pytest.approx(0.87),
        100,
    )
    assert (row.seconds, row.asr_floor, row.clean_rows) == (10.0, 0.1, 768)


def test_what_failed_and_what_is_missing_is_in_the_frame(study: Path) -> None:
    frame = defensekit.results(study)
    [failed], [missing] = (frame[frame.state == state].to_dict("records") for state in ("failed", "missing"))
    assert (failed["error"], failed["seed"], failed[SCORER]) == ("out of memory", 1, "random")
    assert (missing["seed"], missing[SCORER]) == (2, "random")
    for row in (failed, missing):
        assert all(pandas.isna(row[name]) for name in ("model", "metric", "value"))


def test_trials_can_be_told_from_what_was_chosen(tmp_path: Path) -> None:
    curve = {0.3: {"acc": 0.85, "asr": 0.9}, 0.6: {"acc": 0.8, "asr": 0.3}}
    found = ended(0.8, 0.3, curve=curve, chosen=0.6)
    frame = defensekit.results(write_study(tmp_path / "studies/curve", [({}, 0, found)]))
    trials = frame[frame.trial.notna()]
    assert trials[trials.metric == "asr"].set_index("trial").value.to_dict() == {0.3: 0.9, 0.6: 0.3}
    assert set(trials.model) == {"purified"}
    assert trials[trials.trial == 0.3].dev_accuracy.iloc[0] == 0.85
    assert set(frame[frame.trial.isna()].model) == {"clean", "suspect", "purified"}
    assert (set(frame.rule), set(frame.over), set(frame.chosen)) == ({"accuracy-floor"}, {"selector.fraction"}, {0.6})


def test_axes_keep_their_types_and_take_no_other_columns_place(tmp_path: Path) -> None:
    first = {"model": "minilm", FRACTION: 0.25, "training.epochs": 2, "training.dropout": True, "mixed": 1}
    second = {"model": "bert", FRACTION: 1, "training.epochs": 3, "training.dropout": False, "mixed": "one"}
    place = write_study(tmp_path / "studies/types", [(first, 0, ended(0.8, 0.2)), (second, 0, None)])
    frame = defensekit.results(place)
    kinds = {name: str(frame[name].dtype) for name in ("axis.model", *list(first)[1:])}
    assert list(kinds.values()) == ["string", "Float64", "Int64", "boolean", "string"]
    assert set(frame["mixed"]) == {"1", "one"}
    assert set(frame["model"].dropna()) == {"clean", "suspect", "purified"}


def test_csv_and_parquet_say_the_same(study: Path, tmp_path: Path) -> None:
    csv, parquet = export(study, tmp_path / "out")
    frame = defensekit.results(study)
    pandas.testing.assert_frame_equal(pandas.read_parquet(parquet), frame)
    again = pandas.read_csv(csv, dtype=dict(frame.dtypes))
    pandas.testing.assert_frame_equal(again, frame)


def test_a_study_may_be_copied_elsewhere(study: Path, tmp_path: Path) -> None:
    copied = study.rename(tmp_path / "copied")
    assert len(defensekit.results(copied)) == 44


def test_folders_without_a_study_and_damaged_ones_say_so(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DefenseKitError, match="has no study that was run"):
        defensekit.results(tmp_path)
    done = id_of({SCORER: "diffusion", ATTACK: "word"}, 0)
    (study / "results" / f"{done}.json").write_text("{}")
    frame = defensekit.results(study)
    assert list(frame[frame.run == done].state) == ["missing"]  # its digest is another
    (study / "study.json").write_text('{"study": {}, "axes": {}, "runs": [{"id": "../../x", "axes": {}, "seed": 0}]}')
    with pytest.raises(DefenseKitError, match=r"study\.json is damaged \(at runs\.0\.id\)"):
        defensekit.results(study)


# -- pivots ------------------------------------------------------------------------------------------------------------


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
    cell = Cell(tuple(values))
    mean = sum(values) / len(values)
    assert cell.mean == pytest.approx(mean)
    if len(values) == 1:
        assert cell.spread is None
    else:
        assert cell.spread == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)))


# -- markup ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def evil() -> Table:
    """A table with markup of every language wherever text may stand."""
    columns = (Column(EVIL, EVIL, "lower", floor=0.1), Column(EVIL, "B"))
    rows = (Row((EVIL, "x"), (Cell((0.5, 0.7)), Cell(failed=2))), Row(("y", "[z]"), (Cell(), Cell()), oracle=EVIL))
    return Table(EVIL, (EVIL, "b"), columns, rows, 2, (EVIL,))


def test_html_is_escaped(evil: Table) -> None:
    page = html(evil)
    assert "<b " not in page
    assert page.count("&lt;b onclick=") == 6


def test_markdown_is_escaped(evil: Table) -> None:
    lines = markdown(evil).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    for line in lines[:1] + rows[:1] + rows[2:]:
        assert not re.search(r"(?<!\\)[<`\[$~#]", line)
    assert "0.600 ± 0.141" in rows[2]


def test_latex_is_escaped(evil: Table) -> None:
    made = latex(evil)
    known = r"\\(begin|end|centering|caption|\w+rule|multicolumn|pm|uparrow|downarrow|text\w+)\b"
    known += r"|\\(resizebox|ifdim|width|linewidth|else|fi)\b"
    rest = re.sub(known, "", made)
    assert not re.search(r"\\[a-zA-Z]", rest)
    assert not re.search(r"(?<!\\)[%#^~]", rest)
    rows = [line for line in made.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows[1:]} == {3}
    assert not re.search(r"(?<!\\)\$(?!\\pm|\\uparrow|\\downarrow|[\s)&])", made.replace(r"$\pm$", ""))
    lines = made.replace(r"\{", "").replace(r"\}", "").splitlines()
    opened = {line: line.count("{") - line.count("}") for line in lines if line.count("{") != line.count("}")}
    assert list(opened.values()) == [1, -1], opened  # \resizebox, which holds the tabular


def test_latex_has_a_minus_for_a_number_below_nothing() -> None:
    columns, cells = (Column("", "ACC"),), (Cell((-0.25,)),)
    made = latex(Table("2026-11", ("a-b-2",), columns, (Row(("-1 --2",), cells),), 1, ("[-0.5, 1]",)))
    assert re.findall(r"(\S*)\$-\$(\S+)", made) == [("{[}", "0.5,"), ("", "1"), ("-{}", "2"), ("", "0.250")]
    assert "2026-11" in made
    assert "a-b-2" in made


HOSTILE = ["*a_b%c&d#e$f{g}h\\i~j^k<l>m|n\"o'p`q", "Ünï – “quo” … ± ×", "世 😀 Ωμ Жук «ąđ»"]
HOSTILE += ["--- --", "[opt] *star", "?` !`"]


def hostile() -> Table:
    columns = (Column("gr_p & 100%", "ACC", "higher"), Column("gr_p & 100%", "ASR", "lower", floor=0.1))
    rows = tuple(Row((label, label), (Cell((0.5, 0.6)), Cell((0.1,), 1, 1))) for label in HOSTILE)
    return Table("ti_tle % & #", ("model", "de_f"), columns, rows, 2, ("n_o%te “x” ± …",))


def test_latex_has_a_line_under_each_group_of_columns() -> None:
    columns = tuple(Column(group, "ACC") for group in ("", "word", "word", "sentence"))
    made = latex(Table("t", ("model", "defense"), columns, (), 1, ()))
    assert "\\cmidrule(lr){4-5}\\cmidrule(lr){6-6}\n" in made
    assert "cmidrule" not in latex(Table("t", ("model",), columns[:1], (), 1, ()))


def test_latex_of_what_it_can_not_print() -> None:
    made = latex(hostile())
    assert "(U+4E16) (U+1F600) (U+03A9)(U+03BC) (U+0416)" in made
    assert "-{}-{}- -{}-" in made
    assert not re.search(r"\\\\\n[*\[]", made)  # it would be taken for a part of the end of the line above
    assert made.isascii() or set(made) - set(map(chr, range(128))) <= set("Ünï“”…×")


def test_latex_can_be_compiled(tmp_path: Path) -> None:
    if not (command := shutil.which("pdflatex")):
        pytest.skip("there is no pdflatex on this machine")
    (tmp_path / "table.tex").write_text(latex(hostile()), encoding="utf-8")
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\\input{table}\\end{document}\n"
    )
    options = ["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    done = subprocess.run([command, *options], cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "main.pdf").is_file()


# -- held against each other -------------------------------------------------------------------------------------------


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
