"""A study's report: real runs, the page in a browser, the figures, the commands."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from typer.testing import CliRunner

import defensekit
from defensekit.cli.main import app
from defensekit.pipeline.plan import trial_title
from defensekit.pipeline.predictions import read_predictions
from defensekit.result.schema import Result
from defensekit.studies.frame import Finished
from defensekit.studies.loading import load_study
from defensekit.studies.report.comparing import Comparison
from defensekit.studies.report.page import report
from defensekit.studies.report.pairing import bootstrap
from defensekit.studies.report.plots import heats, plain, tradeoff
from defensekit.studies.running import run_study
from defensekit.utils.errors import UsageError
from tests.conftest import RECIPE, make_sentences, open_page, write_table
from tests.studies import id_of, model, reset, result, write_study
from tests.test_report import EVIL

STUDY = """\
name: real
recipe: pico.yaml
matrix:
  defense.scorer: [diffusion, random]
seeds: [0, 1]
"""


# -- a real study ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A study of two scorers with two seeds, run in this process; its folder."""
    place = tmp_path_factory.mktemp("real")
    write_table(place / "rows.csv", make_sentences(300))
    recipe = RECIPE.format(base=base).replace("epochs: 8", "epochs: 2").replace("train: 240", "train: 64")
    recipe = recipe.replace("[reset, {name: fine-tune, epochs: 2, learning_rate: 3e-3, batch_size: 8}]", "[reset]")
    recipe = recipe.replace("[0.25, 0.5], max_drop: 0.1", "[0.5], max_drop: 0.5")
    (place / "pico.yaml").write_text(recipe + "  compare: {}\n")
    (place / "study.yaml").write_text(STUDY)
    outcome = run_study(load_study(place / "study.yaml"), place / "workspace")
    assert not outcome.failed
    return outcome.folder


def test_the_frame_is_what_the_results_say(real: Path) -> None:
    frame = defensekit.results(real)
    count = 0
    for path in (real / "results").glob("*.json"):
        written = json.loads(path.read_text())
        mine = frame[frame.run == path.stem]
        pandas.testing.assert_frame_equal(defensekit.results(path), mine.reset_index(drop=True))
        for name, found in written["models"].items():
            for metric, measured in found["metrics"].items():
                row = mine[mine.trial.isna() & (mine.model == name) & (mine.metric == metric)].iloc[0]
                assert (row.value, row.low, row.rows) == (measured["value"], measured["low"], measured["rows"])
                assert row.seconds == found["seconds"]
                assert pandas.isna(row.peak_memory) or row.peak_memory > 2**20  # not known of what was removed
                count += 1
        for trial in written["curve"]:
            row = mine[(mine.trial == trial["value"]) & (mine.metric == "asr")].iloc[0]
            assert (row.value, row.dev_accuracy) == (trial["metrics"]["asr"]["value"], trial["dev_accuracy"])
            count += 2
    assert len(frame) == count == 4 * (3 * 2 + 2 * 2)


def test_intervals_are_over_the_stored_answers(real: Path) -> None:
    comparison = Comparison(Finished(real))
    table = comparison.differences()
    assert not comparison.unpaired
    [row] = [row for row in table.rows if row.labels == ("accuracy-floor", "random")]
    results: dict[tuple[Any, int], Result] = {}
    for path in (real / "results").glob("*.json"):
        found = Result.model_validate_json(path.read_text())
        results[found.axes["defense.scorer"], found.recipe["seed"]] = found

    def hits(found: Result, on: str) -> np.ndarray:
        assert found.chosen
        title = trial_title(found.chosen.over, found.chosen.value)
        predictions = read_predictions(found.files(f"{title}: answers to {on} rows"))
        if on == "plain":
            return (predictions.answers() == predictions.labels).astype(int)
        assert found.attack
        target = found.attack["target"]
        return (predictions.answers() == target)[predictions.labels != target].astype(int)

    for cell, on in zip(row.cells, ("plain", "triggered"), strict=True):
        pairs = [hits(results["random", seed], on) - hits(results["diffusion", seed], on) for seed in (0, 1)]
        assert cell.values == pytest.approx([pair.mean() for pair in pairs])
        assert cell.interval == bootstrap(pairs)


def test_the_report_of_a_real_study_is_whole_and_changes_nothing(real: Path, tmp_path: Path) -> None:
    workspace = real.parents[1]
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    made = report(real)
    assert [table.title for table in made.tables] == ["real", "At matched ACC", "Differences from diffusion"]
    assert made.write(tmp_path) == tmp_path / "report.html"
    assert {path.name for path in tmp_path.rglob("*.*")} == {
        "report.html", "tables.md", "tables.tex", "tradeoff-1.pdf", "resets-1.pdf",
    }  # fmt: skip
    assert "oracle-matched" in (tmp_path / "tables.tex").read_text()
    written = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    report(real).write(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == written
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before


# -- made up ones ------------------------------------------------------------------------------------------------------


def wide(place: Path, name: str = "made-up", scorers: tuple[str, ...] = ("a", "b", "c"), error: str = "") -> Path:
    """A study with curves and resets, two attacks, three seeds; one run failed, one is missing."""
    runs: list[Any] = []
    for attack in ("word", "sentence"):
        for k, scorer in enumerate(scorers):
            for seed in range(3):
                curve = {
                    value: {"acc": 0.88 - 0.1 * value * (k + 1) / 2 - 0.004 * seed, "asr": 1 - value * (1 + seed / 20)}
                    for value in (0.3, 0.5, 0.7, 0.9)
                }
                tensors = {f"layer.{i}.{kind}": (100, 80, 20 * i + k) for i in range(3) for kind in ("query", "value")}
                chosen = model(curve[0.5], reset({**tensors, "layer.2.none": (10, 0, 0), "embeddings": (50, 50, 9)}))
                models = {
                    "clean": model({"acc": 0.9, "asr": 0.1}),
                    "suspect": model({"acc": 0.88, "asr": 1.0}),
                    "purified": chosen,
                }
                oracle = ["oracle-floor"] if k == 2 else []
                runs.append(({"defense.scorer": scorer, "attack": attack}, seed, result(models, curve, 0.5, oracle)))
    runs[-1] = (*runs[-1][:2], error or "out of memory")
    runs[0] = (*runs[0][:2], None)
    return write_study(place / "workspace/studies" / name, runs)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a made-up study."""
    return report(wide(tmp_path_factory.mktemp("wide"))).write()


def test_the_page_says_what_is_not_there_and_what_is_an_oracle(written: Path) -> None:
    page = written.read_text()
    for part in (
        "18 runs: 16 done, 1 failed, 1 missing.",
        "n=2, 1 missing",
        "n=2, 1 failed",
        "c (oracle: oracle-floor)",
        "oracle-matched, 5 points",
        "clean reference",
        "suspect",
        "<small>floor 0.100</small>",
        "ACC ↑",
        "ASR ↓",
        "out of memory",
        "3 seeds carry no rank test",
        "CPU, cpu, threads 1",
        f"defensekit study report {written.parent}",
    ):
        assert part in page, part


def test_nothing_of_a_study_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = report(wide(tmp_path, scorers=(EVIL, "$x^{", "_hidden"), error=EVIL)).page()
    assert EVIL not in page
    assert "default-src 'none'" in page
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))  # type: ignore[method-assign]
    parser.feed(page)
    assert {"img", "table"} <= {tag for tag, _ in tags}
    assert "script" not in {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)


def test_a_study_without_an_attack_or_a_choice_has_a_page(tmp_path: Path) -> None:
    found = result({"suspect": model({"acc": 0.9}), "purified": model({"acc": 0.8})})
    page = report(write_study(tmp_path / "w/studies/plain", [({"defense.scorer": "a"}, 0, found)])).page()
    assert "At matched accuracy" not in page
    assert "Accuracy against" not in page
    assert "One seed." in page


def test_a_study_in_which_nothing_is_done_yet_has_a_page(tmp_path: Path) -> None:
    runs: list[Any] = [({"defense.scorer": name}, 0, None) for name in ("a", "b")]
    page = report(write_study(tmp_path / "w/studies/none", runs)).page()
    assert "2 runs: 0 done, 2 missing." in page


# -- figures -----------------------------------------------------------------------------------------------------------


def test_lines_are_means_and_bands_one_standard_deviation(tmp_path: Path) -> None:
    comparison = Comparison(Finished(wide(tmp_path)))
    group = comparison.groups[1]
    figure = tradeoff(group, comparison.over)
    everything, first, *_ = figure.axes
    assert len(figure.axes) == 4
    frame = defensekit.results(comparison.study.place)
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


def test_values_beside_points_stay_clear_of_the_title(tmp_path: Path) -> None:
    curve = {0.0: {"acc": 0.9, "asr": 1.0}, 0.9: {"acc": 0.9, "asr": 0.95}}
    runs: list[Any] = [
        ({"defense.scorer": name}, 0, result({"purified": model(curve[0.9])}, curve, 0.9)) for name in "ab"
    ]
    comparison = Comparison(Finished(write_study(tmp_path / "w/studies/high", runs)))
    figure = tradeoff(comparison.groups[0], comparison.over)
    figure.draw_without_rendering()
    for axes in figure.axes[1:]:
        assert [text.get_text() for text in axes.texts] == ["0.9", "0"]
        assert all(text.get_window_extent().y1 <= axes.bbox.y1 for text in axes.texts)


def test_labels_that_begin_alike_are_lines_of_their_own(tmp_path: Path) -> None:
    comparison = Comparison(Finished(wide(tmp_path, scorers=("x" * 60 + "1", "x" * 60 + "2"))))
    figure = tradeoff(comparison.groups[0], comparison.over)
    assert len(figure.axes) == 3
    assert len(figure.legends[0].get_texts()) == 5  # two lines, suspect, clean reference, floor


def test_a_group_in_which_nothing_is_done_has_a_figure_without_lines(tmp_path: Path) -> None:
    fractions = [({"defense.selector.fraction": value}, 0, None) for value in (0.1, 0.2)]
    comparison = Comparison(Finished(write_study(tmp_path / "w/studies/none", fractions)))
    assert comparison.over == "defense.selector.fraction"
    assert len(tradeoff(comparison.groups[0], comparison.over).axes) == 1


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


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1200, 360])
def test_a_studys_page_is_visible_at_any_width(browser: webdriver.Chrome, written: Path, width: int) -> None:
    assert open_page(browser, written, width) == []
    for name in ("results", "tradeoffs", "matched", "differences", "heats", "failures", "repeat"):
        assert browser.find_element(By.ID, name).is_displayed(), name
    for image in browser.find_elements(By.TAG_NAME, "img"):
        assert browser.execute_script("return arguments[0].naturalWidth", image) > 100
        assert image.size["width"] >= 900  # its letters would be too small to read
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('td, th, p, small')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 11
    assert browser.title == "made-up – DefenseKit"


def test_a_studys_text_is_text_in_the_browser_too(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = report(wide(tmp_path, scorers=(EVIL, "b", "c"), error=EVIL)).write()
    assert open_page(browser, page, 1200) == []
    assert browser.title == "made-up – DefenseKit"
    assert EVIL in browser.find_element(By.CSS_SELECTOR, "tbody").text
    assert not browser.find_elements(By.CSS_SELECTOR, "script, img[onerror]")


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def commands() -> CliRunner:
    return CliRunner()


def test_report_prints_the_table_and_writes_the_rest(commands: CliRunner, tmp_path: Path) -> None:
    place = wide(tmp_path)
    asked = ["study", "report", str(place), "--rows", "attack", "--cols", "defense.scorer", "--metric", "acc"]
    asked += [
        "--metric",
        "asr",
        "--model",
        "suspect",
        "--model",
        "purified",
        "--where",
        "attack=word",
        "--against",
        "b",
    ]
    done = commands.invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert f"<pre>{shlex.join(['defensekit', *asked])}</pre>" in (place / "report.html").read_text()
    assert re.search(r"purified +word +0\.\d{3} ± ", done.output)
    assert "oracle" in done.output
    assert f"report: {place / 'report.html'}" in done.output
    assert {"report.html", "tables.md", "tables.tex", "plots"} <= {path.name for path in place.iterdir()}


def test_a_study_may_be_named_by_its_yaml(commands: CliRunner, tmp_path: Path) -> None:
    wide(tmp_path)
    (tmp_path / "made-up.yaml").write_text("name: made-up\nrecipe: nowhere.yaml\n")
    out = tmp_path / "out"
    workspace = ["--workspace", str(tmp_path / "workspace")]
    done = commands.invoke(app, ["study", "export", str(tmp_path / "made-up.yaml"), "--out", str(out), *workspace])
    assert done.exit_code == 0, done.output
    assert done.output.split() == [str(out / "results.csv"), str(out / "results.parquet")]
    frame = pandas.read_parquet(out / "results.parquet")
    assert len(frame) == 16 * (3 * 2 + 4 * 2) + 2
    assert id_of({"defense.scorer": "a", "attack": "word"}, 0) in set(frame[frame.state == "missing"].run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "{}/workspace/studies/made"], r"no study has run in .*/made\. Did you mean '.*/made-up'\?"),
        (["report", "{}/other.yaml"], r"no study has run in workspace/studies/other \(--workspace says where it ran\)"),
        (["report", "{}/othr.yaml"], r"there is no study .*/othr\.yaml\. Did you mean '.*/other\.yaml'\?"),
        (["status", "{}/recipe.yaml"], r"recipe\.yaml: this is a recipe: `defensekit run` runs it"),
        (["run", "{}/other.yaml", "--resume", "alway"], r"^resume: 'alway'\? Did you mean 'always'\?"),
        (["rerun", "{}/other.yaml"], r"other\.yaml is no result's file.*/results/"),
        (["report", "{}/bad.yaml"], "is no study: it has no `name:`"),
        (["report", "{}/out.yaml"], "names no study"),
        (["report", "{}/workspace/studies/made-up", "--rows", "attak"], "no axis 'attak'. Did you mean 'attack'"),
        (["report", "{}/workspace/studies/made-up", "--where", "attack"], "expected AXIS=VALUE"),
        (["report", "{}/workspace/studies/made-up", "--against", "d"], r"no defense 'd'.*defenses: a, b, c"),
    ],
)
def test_mistakes_are_told(commands: CliRunner, tmp_path: Path, arguments: list[str], message: str) -> None:
    wide(tmp_path)
    (tmp_path / "other.yaml").write_text("name: other\n")
    (tmp_path / "bad.yaml").write_text("recipe: x\n")
    (tmp_path / "recipe.yaml").write_text("name: r\nmodel: x\n")
    (tmp_path / "out.yaml").write_text("name: ../../..\n")
    done = commands.invoke(app, ["study", *(argument.format(tmp_path) for argument in arguments)])
    assert isinstance(done.exception, UsageError)
    assert re.search(message, str(done.exception))
