"""A study's report: real runs, the page in a browser, the figures, the commands."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

import defensekit
from defensekit.pipeline.predictions import read_predictions
from defensekit.result.schema import Result
from defensekit.studies.frame import Finished
from defensekit.studies.loading import load_study
from defensekit.studies.report.comparing import Comparison
from defensekit.studies.report.page import report
from defensekit.studies.report.pairing import bootstrap
from defensekit.studies.running import run_study
from tests.conftest import RECIPE, make_sentences, open_page, write_table
from tests.result.helpers import EVIL
from tests.studies.helpers import model, result, write_study
from tests.studies.report.helpers import wide

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
                assert row.peak_memory > 2**20
                count += 1
        for trial in written["curve"]:
            row = mine[(mine.trial == trial["value"]) & (mine.metric == "asr")].iloc[0]
            assert (row.value, row.dev_accuracy) == (trial["metrics"]["asr"]["value"], trial["dev_accuracy"])
            count += 3
    assert len(frame) == count == 4 * (4 * 3 + 2 * 3)


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
        if on == "both":
            adds: np.ndarray = hits(found, "triggered") - hits(found, "without trigger")
            return adds
        rows = "triggered" if on == "triggered" else "plain"
        predictions = read_predictions(found.files(f"purified: answers to {rows} rows"))
        if on == "plain":
            return (predictions.answers() == predictions.labels).astype(int)
        assert found.attack
        target = found.attack["target"]
        return (predictions.answers() == target)[predictions.labels != target].astype(int)

    for cell, on in zip(row.cells, ("plain", "triggered", "both"), strict=True):
        pairs = [hits(results["random", seed], on) - hits(results["diffusion", seed], on) for seed in (0, 1)]
        assert cell.values == pytest.approx([pair.mean() for pair in pairs])
        assert cell.interval == bootstrap(pairs)


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a made-up study."""
    return report(wide(tmp_path_factory.mktemp("wide"))).write()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a made-up study with markup wherever a study has text."""
    return report(wide(tmp_path_factory.mktemp("evil"), scorers=(EVIL, "$x^{", "_hidden"), error=EVIL)).write()


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


def test_nothing_of_a_study_is_fetched_and_nothing_runs(hostile: Path) -> None:
    page = hostile.read_text()
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


def test_a_studys_text_is_text_in_the_browser_too(browser: webdriver.Chrome, hostile: Path) -> None:
    assert open_page(browser, hostile, 1200) == []
    assert browser.title == "made-up – DefenseKit"
    assert EVIL in browser.find_element(By.CSS_SELECTOR, "tbody").text
    assert not browser.find_elements(By.CSS_SELECTOR, "script, img[onerror]")
