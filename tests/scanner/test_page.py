"""A scan's page: what it says, and how it looks in a browser."""

import json
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from defensekit.scanner.page import drift_table, render_scan, write_scan
from defensekit.scanner.result import Scan
from defensekit.scanner.scan import scan
from tests.conftest import open_page
from tests.scanner.helpers import THRESHOLD

EVIL = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"


def test_the_page_says_what_was_found(found: Scan, tmp_path: Path) -> None:
    page = write_scan(found, tmp_path).read_text()
    for part in (
        "Suspicious:",
        f"{THRESHOLD}.",
        "Tokens tried",
        "<code>cf</code>",
        "attention q",
        "r = delta²",
        "How it was made",
    ):
        assert part in page, part
    assert page == render_scan(Scan.model_validate_json((tmp_path / "scan.json").read_text()))


def test_a_page_without_rows(base: Path, clean: Path) -> None:
    page = render_scan(scan(base, clean))
    assert "Not suspicious by this measure" in page
    assert "Tokens tried" not in page
    assert "Drift over curvature" not in page


def test_the_drift_table_adds_up_tensors(found: Scan) -> None:
    table = drift_table(found.tensors)
    assert table.columns == ["0", "1", "outside"]
    assert table.rows["embedding"][:2] == [None, None]
    cell = table.rows["attention q"][1]
    assert cell is not None
    [only] = [t for t in found.tensors if t.kind == "attention q" and t.layer == 1]
    assert cell.relative == pytest.approx(only.relative)
    assert sum(cell.dimensions for cells in table.rows.values() for cell in cells if cell) == sum(
        t.dimensions for t in found.tensors
    )


def evil(found: Scan) -> Scan:
    """The scan as an attacker would write it."""
    data = json.loads(found.model_dump_json())
    data["suspect"] = data["base"] = data["task"] = EVIL
    data["notes"] = [EVIL]
    data["summary"][0] = EVIL
    data["embedding"]["suspicious"][0]["token"] = data["triggers"]["candidates"][0]["token"] = EVIL
    data["triggers"]["candidates"][0]["label"] = EVIL
    data["tensors"][0]["kind"] = data["law"]["tensors"][0]["name"] = EVIL
    return Scan.model_validate(data)


@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_in_a_browser(browser: webdriver.Chrome, found: Scan, tmp_path: Path, width: int) -> None:
    page = write_scan(evil(found), tmp_path)
    assert EVIL not in page.read_text()
    assert open_page(browser, page, width) == []
    assert browser.title.startswith("Scan of ")
    assert not browser.find_elements(By.CSS_SELECTOR, "script, img[onerror]")
    for name in ("triggers", "rows", "drift", "heat", "law", "ratios", "made"):
        element = browser.find_element(By.ID, name)
        assert element.is_displayed(), name
        assert element.size["height"] > 10, name
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
