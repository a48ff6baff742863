"""The board: what can't be told apart shares a letter, nothing of a row gets out of its place, keys are enough."""

import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.page import build, fails, letters, shown, tradeoff
from defensekit.leaderboard.redraw import interval, redrawn
from defensekit.leaderboard.row import RECORD, Verification, VerifiedCell, read_row
from defensekit.leaderboard.scores import ACC, EXCESS, FAILED, HOST, SELF, THIRD, Scores, score, scores_in
from defensekit.leaderboard.ties import standings
from defensekit.leaderboard.tracks import Track
from defensekit.utils.errors import UsageError
from tests.conftest import open_page
from tests.leaderboard.helpers import said, seal

# -- ties --------------------------------------------------------------------------------------------------------------


def made_up(name: str, excess: float, acc: float, baseline: bool = False, rows: int = 400, seeds: int = 3) -> Scores:
    """A row with shares of two attacks; the same rows are hit in every one, as far as there are as many."""
    cells = [(attack, seed) for attack in ("word", "sentence") for seed in range(seeds)]
    hits = {
        metric: pd.Series(np.where(np.arange(rows) < round(abs(share) * rows), np.sign(share), 0).astype(int))
        for metric, share in {EXCESS: excess, ACC: acc}.items()
    }
    row: Any = SimpleNamespace(name=name, entry=SimpleNamespace(keys=SimpleNamespace(baseline=baseline)))
    track: Any = None
    clean = {cell: pd.Series(np.zeros(rows, dtype=int)) for cell in cells}
    return Scores(row, track, {metric: {cell: of.copy() for cell in cells} for metric, of in hits.items()}, clean)


def test_what_can_not_be_told_apart_shares_a_group() -> None:
    rows = [made_up("c", 0.5, 0.9), made_up("a", 0.10, 0.9), made_up("b", 0.1025, 0.9), made_up("d", 0.9, 0.9)]
    found = standings(rows)
    assert [(one.scores.name, one.group) for one in found.rows] == [("a", 0), ("b", 0), ("c", 1), ("d", 2)]
    assert found.apart == 2


def test_a_trigger_that_turns_a_model_away_is_no_less_than_none() -> None:
    rows = [made_up("anew", -0.1, 0.7), made_up("gone", 0.0, 0.9), made_up("left", 0.1, 0.9)]
    assert [(one.scores.name, one.group) for one in standings(rows).rows] == [("anew", 0), ("gone", 0), ("left", 1)]
    assert standings(rows).rows[0].interval[1] < 0, "what is shown is what was measured"
    anew = made_up("anew", -0.1, 0.9, baseline=True)
    assert list(standings([anew, rows[1]]).rows[1].no_better_than) == ["anew"]


def test_a_row_is_marked_that_a_trivial_one_is_as_good_as() -> None:
    rows = [
        made_up("tuned", 0.5, 0.9, baseline=True),
        made_up("anew", 0.0, 0.7, baseline=True),
        made_up("good", 0.1, 0.9),  # better than one by its ASR, than the other by its ACC
        made_up("bad", 0.5, 0.9),
        made_up("worst", 0.9, 0.5),
    ]
    marks = {one.scores.name: list(one.no_better_than) for one in standings(rows).rows}
    assert marks == {"tuned": [], "anew": [], "good": [], "bad": ["tuned"], "worst": ["anew", "tuned"]}


def test_an_interval_is_that_of_rows_and_of_seeds() -> None:
    low, high = interval(made_up("a", 0.25, 1.0, seeds=1, rows=400).redrawn[EXCESS])
    # Of one seed it is the rows' alone: two attacks are asked about the same 400.
    wanted = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert (0.25 - low, high - 0.25) == (pytest.approx(wanted, rel=0.1), pytest.approx(wanted, rel=0.1))
    # Seeds that are asked about the same rows say no more of these; with rows of their own they do.
    low, high = interval(made_up("a", 0.25, 1.0, rows=400).redrawn[EXCESS])
    assert (0.25 - low, high - 0.25) == (pytest.approx(wanted, rel=0.1), pytest.approx(wanted, rel=0.1))
    apart = {
        cell: values.set_axis(values.index + 1000 * cell[1])
        for cell, values in made_up("a", 0.25, 1.0).paired[EXCESS].items()
    }
    low, high = interval(redrawn(apart))
    assert high - low < 1.7 * wanted
    values = {("word", seed): pd.Series([seed % 2] * 100) for seed in range(10)}  # rows say nothing, seeds do
    low, high = interval(redrawn(values))
    assert (0.5 - low, high - 0.5) == (pytest.approx(0.31, abs=0.1), pytest.approx(0.31, abs=0.1))
    assert interval(redrawn(values) - redrawn(values)) == (0, 0)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_numbers(made: Path, track: Track) -> None:
    row = read_row(made)
    numbers = score(row, Checker(track)).numbers()
    word, innocent = row.cells["word", 3].models, row.cells["unpoisoned", 3].models
    before, after = word["suspect"].metrics, word["purified"].metrics
    assert numbers["excess_asr"] == numbers["excess_asr_worst"] == after["excess-asr"].value
    assert numbers["acc_lost"] == pytest.approx(before["acc"].value - after["acc"].value)
    harm = innocent["suspect"].metrics["acc"].value - innocent["purified"].metrics["acc"].value
    assert numbers["harm"] == pytest.approx(harm)
    assert numbers["asr_clean"] == word["clean"].metrics["asr"].value
    assert numbers["fidelity"] == pytest.approx(
        (1 - after["asr"].value / before["asr"].value) * after["acc"].value / before["acc"].value
    )
    assert (numbers["bacc"], numbers["labelled_rows"]) == (None, 24)


def verified(by: str, row: str, same: bool = True) -> Verification:
    cell = VerifiedCell(attack="word", seed=3, differing={"plain": 0.0, "triggered": 0.0 if same else 0.5}, inputs=[])
    given = {"by": by, "when": "2026-01-01T00:00:00Z", "on": {"device": "cpu"}, "isolated": True, "drawn_with": 0}
    return Verification(row=row, cells=[cell], same=same, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("by", "badge"),
    [
        ([], SELF),
        (["A. Nobody"], SELF),  # the author
        (["a.  nobody "], SELF),
        (["-A. Nobody"], FAILED),
        (["someone"], THIRD),
        (["someone", "Keeper"], HOST),
        (["keeper", "-someone"], FAILED),
    ],
)
def test_badges(by: list[str], badge: str, row: Path, track: Track) -> None:
    (row / "verifications").mkdir()
    for i, name in enumerate(by):
        one = verified(name.lstrip("-"), read_row(row).digest, not name.startswith("-"))
        (row / f"verifications/{i}.json").write_text(one.model_dump_json())
    assert score(read_row(row), Checker(track)).badge("keeper") == badge


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.12345, "0.123"), (-0.0001, "0.000"), (-0.5, "−0.500"), (0.0, "0.000")]
)
def test_numbers_as_they_are_shown(value: float | None, text: str) -> None:
    assert shown(value) == text


def test_letters() -> None:
    assert [letters(n) for n in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_every_point_has_a_label() -> None:
    """One that stands beside its point can lie outside of the axes, where it isn't drawn."""
    points = [(-0.028, 0.551), (0.0, 0.837), (0.001, 0.836)]
    records = [
        {"name": "x", "group": group, "baseline": False, "acc_lost": x, "excess_asr": y}
        for group, (x, y) in zip("ABC", points, strict=True)
    ]
    table: Any = SimpleNamespace(standings=SimpleNamespace(rows=records), record=lambda record: record)
    [axes] = tradeoff(table).axes
    labels: list[Any] = list(axes.texts)
    assert [(label.get_text(), label.xy) for label in labels] == [("A", points[0]), ("B, C", points[1])]


def test_where_it_fails() -> None:
    row = made_up("a", 0.5, 0.9)
    assert fails(row) == [("word", 0.5), ("sentence", 0.5)]
    for cell, rows in row.paired[EXCESS].items():
        rows[:] = ((cell[0] == "sentence") & (np.arange(400) < 300)).astype(int)
    assert fails(row) == [("sentence", 0.75)]


# -- the site ----------------------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def site(row: Path, track: Track, tmp_path: Path) -> Path:
    """A board of three rows of one recipe under other names; one of them means harm."""
    for name, changes in {
        "evil": {"title": f"=1+{EVIL}", "about": EVIL, "authors": [EVIL], "chosen_by": EVIL, "licence": EVIL},
        "trivial": {"title": "Trivial", "baseline": True},
    }.items():
        other = shutil.copytree(row, row.parent / name)
        entry = yaml.safe_load((other / "entry.yaml").read_text())
        (other / "entry.yaml").write_text(yaml.safe_dump({**entry, "name": name, **changes}))
        (other / RECORD).write_text((other / RECORD).read_text().replace('"entry": "twelve"', f'"entry": "{name}"'))
        seal(other)
    (row / "verifications").mkdir()
    one = verified(EVIL, read_row(row).digest)
    (row / "verifications/a.json").write_text(one.model_dump_json())
    build([row.parents[1]], tmp_path / "site", [track.document.name])
    return tmp_path / "site"


def test_nothing_of_a_row_gets_out_of_its_place(site: Path, row: Path, track: Track) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert EVIL not in text
        assert "default-src 'none'" in text
        assert text.count("<script>") == (page.name == "index.html")
    assert "&lt;script&gt;" in (site / "tiny-v1/evil.html").read_text()
    [evil] = [line for line in csv.DictReader(io.StringIO((site / "board.csv").read_text())) if line["name"] == "evil"]
    assert evil["title"].startswith("'=1+")
    again = build([row.parents[1]], site.parent / "again", [track.document.name])
    assert again.read_bytes() == (site / "index.html").read_bytes()


def test_data_beside_it(site: Path) -> None:
    records = {one["name"]: one for one in json.loads((site / "board.json").read_text())}
    assert records.keys() == {"twelve", "evil", "trivial"}
    assert {one["group"] for one in records.values()} == {"A"}
    assert records["twelve"]["no_better_than"] == "trivial"
    assert records["twelve"]["badge"] == THIRD
    page = (site / "index.html").read_text()
    assert "0 of 2 neighbours" in page
    assert "No trivial baseline" not in page


def test_a_model_of_one_answer_is_marked(
    row: Path, track: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [scores] = [one for rows in scores_in([row], [track.document.name]).values() for one in rows.values()]
    for result in scores.row.cells.values():
        result.models[scores.row.model(result)].only = None
    assert scores.of_one_answer == []
    cell, result = next(iter(scores.row.cells.items()))
    result.models[scores.row.model(result)].only = "positive"
    assert scores.of_one_answer == [cell]
    monkeypatch.setattr(Scores, "of_one_answer", [cell, cell])
    page = build([row], tmp_path, [track.document.name])
    assert "‡ one answer to every row in 2 cells" in page.read_text()
    assert "In 2 cells its model gives" in (tmp_path / track.name / f"{scores.name}.html").read_text()


def test_two_rows_of_one_name(row: Path, track: Track, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is another row of twelve on tiny-v1"):
        build([row, row], tmp_path / "site", [track.document.name])


def test_the_command(row: Path, track: Track, tmp_path: Path) -> None:
    page = tmp_path / "site/index.html"
    assert said("build", row, "--out", page.parent, "--track", track.document.name) == (f"page: {page}\n", "")
    assert "No trivial baseline is among these rows" in page.read_text()
    command = "verify ROWS/tiny-v1/twelve --by YOU --cells 2 --trust twelve.py --track tiny-v1.yaml</pre>"
    assert command in (page.parent / "tiny-v1/twelve.html").read_text()
    (row / "entry.yaml").write_text("name: other\n")
    assert (
        "entry.yaml is not what its digest"
        in said("build", row, "--out", tmp_path / "other", "--track", track.document.name)[1]
    )
    assert not (tmp_path / "other").exists()


def test_in_a_browser_by_keys_alone(site: Path, browser: webdriver.Chrome) -> None:
    for width in (390, 1280):
        assert open_page(browser, site / "index.html", width) == []  # no error: the policy lets the script run
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    titles = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "tbody th a")]
    button = browser.find_elements(By.CSS_SELECTOR, "thead button")[1]
    head = button.find_element(By.XPATH, "..")
    for keys, state, order in (
        (Keys.ENTER, "ascending", sorted(titles)),
        (Keys.SPACE, "descending", sorted(titles)[::-1]),
    ):
        button.send_keys(keys)
        assert head.get_attribute("aria-sort") == state
        shown_titles = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "tbody th a")]
        assert [text.lower() for text in shown_titles] == [text.lower() for text in order]
    browser.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("trivial baseline")
    visible = [row for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr") if row.is_displayed()]
    assert [row.find_element(By.CSS_SELECTOR, "th a").text for row in visible] == ["Trivial"]
    for page in site.glob("tiny-v1/*.html"):
        assert open_page(browser, page, 390) == []
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
