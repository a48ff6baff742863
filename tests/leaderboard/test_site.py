"""The site: nothing of a row gets out of its place, data beside it, keys are enough, old pages go."""

import csv
import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from defensekit.leaderboard import site as site_module
from defensekit.leaderboard.page import build
from defensekit.leaderboard.row import RECORD, read_row
from defensekit.leaderboard.scores import THIRD, Scores, scores_in
from defensekit.leaderboard.site import LIST, replace_site
from defensekit.leaderboard.table import BASELINES
from defensekit.leaderboard.tracks import Track
from defensekit.utils.errors import UsageError
from defensekit.utils.files import atomic_write
from tests.conftest import ROOT, open_page
from tests.leaderboard.helpers import said, seal
from tests.leaderboard.test_page import verified

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def site(row: Path, track: Track, tmp_path: Path) -> Path:
    """A board of three rows of one recipe under other names; one of them means harm."""
    for name, changes in {
        "evil": {"title": f"=1+{EVIL}", "about": EVIL, "authors": [EVIL], "chosen_by": EVIL, "licence": EVIL},
        "trivial": {"title": "Easy", "baseline": True},
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
    assert "0 of 2 neighbours" in (site / "index.html").read_text()


def test_all_that_is_known_of_a_row_is_in_the_data(site: Path, track: Track) -> None:
    record = {one["name"]: one for one in json.loads((site / "board.json").read_text())}["twelve"]
    assert record["track_digest"] == track.digest
    assert record["entry"] == {
        "about": "Takes every dimension alike.",
        "authors": ["A. Nobody"],
        "links": ["https://example.org/paper"],
        "licence": "MIT",
        "needs": ["base", "labels"],
        "chosen_by": "Nothing was chosen.",
    }
    [verification] = record["verifications"]
    assert (verification["by"], verification["same"], verification["of_the_row_as_it_is"]) == (EVIL, True, True)
    assert record["attempts"] == []
    word = {cell["attack"]: cell for cell in record["cells"]}["word"]
    assert word["seed"] == 3
    assert word["excess_asr"] == pytest.approx(record["excess_asr"], abs=1e-6)
    assert word["excess_asr_clean"] == pytest.approx(record["excess_asr_clean"], abs=1e-6)
    assert "bacc" not in word  # not measured
    cells = list(csv.DictReader(io.StringIO((site / "cells.csv").read_text())))
    assert {(cell["name"], cell["attack"]) for cell in cells} == {
        (name, attack) for name in ("twelve", "evil", "trivial") for attack in ("word", "unpoisoned")
    }
    [ours] = [cell for cell in cells if (cell["name"], cell["attack"]) == ("twelve", "word")]
    assert (float(ours["asr"]), ours["bacc"], ours["submitted"]) == (word["asr"], "", "False")


def test_a_mark_is_a_title_that_leads_to_the_card(site: Path) -> None:
    easy = '<a href="{}trivial.html">Easy</a>'
    assert f"§ no better than {easy.format('tiny-v1/')}" in (site / "index.html").read_text()
    assert f"It is no better than {easy.format('')}" in (site / "tiny-v1/twelve.html").read_text()


def test_trivial_baselines_that_are_missing_are_named(site: Path) -> None:
    missing = "Of the trivial baselines there is no row of: "
    assert f"{missing}{', '.join(BASELINES.values())}." in (site / "index.html").read_text()
    for path in (ROOT / "leaderboard/entries").rglob("*.yaml"):
        entry = yaml.safe_load(path.read_text())
        assert (entry["name"] in BASELINES) == entry.get("baseline", False)


def test_pages_of_rows_that_are_gone_go(site: Path, row: Path, track: Track) -> None:
    (site / "tiny-v1/mine.html").write_text("not the board's")
    (site / "tiny-v1/twelve.html").write_text("changed by hand")
    shutil.rmtree(row.parent / "evil")
    shutil.rmtree(row)
    build([row.parents[1]], site, [track.document.name])
    there = {path.name for path in (site / "tiny-v1").glob("*.html")}
    assert there == {"trivial.html", "mine.html", "twelve.html"}


def test_nothing_but_what_a_site_wrote_is_removed(tmp_path: Path) -> None:
    replace_site(tmp_path / "site", {"index.html": b"a", "old-v1/attacks/word.html": b"b", "old-v1/x.html": b"c"})
    (tmp_path / "site/old-v1/x.html").unlink()
    (tmp_path / "mine.html").write_text("b")
    (tmp_path / "site/link.html").symlink_to(tmp_path / "mine.html")
    digest = hashlib.sha256(b"b").hexdigest()
    with (tmp_path / "site" / LIST).open("a") as listed:
        listed.writelines(f"{digest}  {name}\n" for name in ("../mine.html", str(tmp_path / "mine.html"), "link.html"))
        listed.write("no line of a list\n")
    replace_site(tmp_path / "site", {"index.html": b"d"})
    assert (tmp_path / "mine.html").read_text() == "b"
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"index.html", "link.html", LIST}
    (tmp_path / "site" / LIST).write_bytes(b"\xff\x00")
    replace_site(tmp_path / "site", {"index.html": b"e"})
    assert (tmp_path / "site/index.html").read_bytes() == b"e"


def test_a_folder_of_other_files_is_left_alone(row: Path, track: Track, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("mine")
    (tmp_path / "rows/link").symlink_to(row)
    for out, why in {
        "mine": "has files that no build wrote",
        "rows": "lies in the rows",
        "rows/tiny-v1/twelve": "lies in the rows",
        "rows/link/site": "lies in the rows",
        "mine/index.html": "is a file",
    }.items():
        assert why in said("build", row.parents[1], "--out", tmp_path / out, "--track", track.document.name)[1]
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]


def test_a_site_that_was_interrupted_is_built_again(
    row: Path, track: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site/.git").mkdir(parents=True)

    def killed(path: Path, content: bytes) -> None:
        atomic_write(path, content)
        if path.name == "index.html":
            raise KeyboardInterrupt

    monkeypatch.setattr(site_module, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        build([row], tmp_path / "site", [track.document.name])
    monkeypatch.undo()
    build([row], tmp_path / "site", [track.document.name])


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
    page = build([row], tmp_path / "site", [track.document.name])
    assert "‡ one answer to every row in 2 cells" in page.read_text()
    assert "In 2 cells its model gives" in (page.parent / track.name / f"{scores.name}.html").read_text()


def test_two_rows_of_one_name(row: Path, track: Track, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is another row of twelve on tiny-v1"):
        build([row, row], tmp_path / "site", [track.document.name])


def test_the_command(row: Path, track: Track, tmp_path: Path) -> None:
    page = tmp_path / "site/index.html"
    assert said("build", row, "--out", page.parent, "--track", track.document.name) == (f"page: {page}\n", "")
    assert "Of the trivial baselines there is no row of: nothing done, " in page.read_text()
    assert "seconds and memory are its author's word" in page.read_text()
    assert "a file in the row, which anyone can write" in page.read_text()
    command = "verify ROWS/tiny-v1/twelve --by YOU --cells 2 --trust twelve.py --track tiny-v1.yaml</pre>"
    card = (page.parent / "tiny-v1/twelve.html").read_text()
    assert command in card
    assert "--out purified --recipe ROWS/tiny-v1/twelve/entry.yaml" in card
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
    titles = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "tbody th > a")]
    button = browser.find_elements(By.CSS_SELECTOR, "thead button")[1]
    head = button.find_element(By.XPATH, "..")
    for column in browser.find_elements(By.CSS_SELECTOR, "thead th"):
        column.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        first = "descending" if "↑" in column.text else "ascending"
        assert column.get_attribute("aria-sort") == first, column.text
    assert "↑" in browser.find_element(By.TAG_NAME, "thead").text
    for keys, state, order in (
        (Keys.ENTER, "ascending", sorted(titles)),
        (Keys.SPACE, "descending", sorted(titles)[::-1]),
    ):
        button.send_keys(keys)
        assert head.get_attribute("aria-sort") == state
        shown_titles = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "tbody th > a")]
        assert [text.lower() for text in shown_titles] == [text.lower() for text in order]
    field = browser.find_element(By.CSS_SELECTOR, "input[type=search]")
    for words, found in {
        "trivial": ["Easy"],  # its id; others have it in a mark
        "easy": ["Easy"],
        "party": ["Twelve <b>lines</b>"],  # its badge
        "no better": [],
        "0.": [],
        "labels base": titles,
    }.items():
        field.clear()
        field.send_keys(words)
        visible = [row for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr") if row.is_displayed()]
        assert {row.find_element(By.CSS_SELECTOR, "th > a").text for row in visible} == {*found}, words
    for page in site.glob("tiny-v1/*.html"):
        assert open_page(browser, page, 390) == []
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


# -- rows that ship ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of two tracks; the attacker comes back on the one with a real model."""
    rows, out = ROOT / "leaderboard/rows", tmp_path_factory.mktemp("shipped")
    build([rows / name for name in ("pico-v1/nothing", "sst2-minilm-v1/nothing", "sst2-minilm-v1/epur")], out)
    return out


def test_a_track_that_ranks_nothing_comes_last(shipped: Path) -> None:
    page = (shipped / "index.html").read_text()
    assert page.index('<h2 id="sst2-minilm-v1">') < page.index('<h2 id="pico-v1">')
    assert [one["track"] for one in json.loads((shipped / "board.json").read_text())][-1] == "pico-v1"


def test_a_card_has_what_comes_back_of_every_attack(shipped: Path) -> None:
    records = {(one["track"], one["name"]): one for one in json.loads((shipped / "board.json").read_text())}
    cells = [one for one in records["sst2-minilm-v1", "epur"]["cells"] if one["attack"] == "syntactic"]
    came_back = f"{sum(one['asr_retuned_20'] for one in cells) / len(cells):.3f}"
    innocent = f"{sum(one['asr_clean_retuned_20'] for one in cells) / len(cells):.3f}"
    for page in ("epur.html", "attacks/syntactic.html"):
        assert f"{came_back}<small>{innocent}</small>" in (shipped / "sst2-minilm-v1" / page).read_text()
    card = (shipped / "sst2-minilm-v1/epur.html").read_text()
    assert card.count("<svg") == 4  # backdoors; a bias has no ASR
    assert f"20 rows {came_back}" in card
    assert "20 rows" not in (shipped / "pico-v1/nothing.html").read_text()
    assert "ASR, 20 rows" not in (shipped / "index.html").read_text()


def test_rows_of_texts_are_no_labelled_ones(shipped: Path) -> None:
    lines = {(one["track"], one["name"]): one for one in csv.DictReader((shipped / "board.csv").open())}
    counts = {key: (float(one["labelled_rows"]), float(one["unlabelled_rows"])) for key, one in lines.items()}
    assert counts["sst2-minilm-v1", "epur"] == (0, 256)
    assert counts["sst2-minilm-v1", "nothing"] == counts["pico-v1", "nothing"] == (0, 0)


def test_the_board_fits_a_screen(shipped: Path, browser: webdriver.Chrome) -> None:
    wide = "return [...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).length"
    assert open_page(browser, shipped / "index.html", 1280) == []
    assert browser.execute_script(wide) == 0
    assert open_page(browser, shipped / "index.html", 390) == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    overlapping = """
      const boxes = [...document.querySelectorAll("figure a text")].map(one => one.getBoundingClientRect());
      const svg = document.querySelector("figure svg").getBoundingClientRect();
      return boxes.some((one, i) => one.right > svg.right || boxes.slice(0, i).some(other =>
        one.top < other.bottom - 1 && other.top < one.bottom - 1 && one.left < other.right && other.left < one.right));
    """
    assert not browser.execute_script(overlapping)
