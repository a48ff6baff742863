"""The documentation as pages: they build without a warning, load nothing from elsewhere, and fit a narrow screen."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import get_files
from selenium import webdriver

from tests.conftest import ROOT, open_page


def build(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """What a page loads when it is opened; a link is followed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"src", "srcset", "poster", "data", *(["href"] if tag != "a" else [])}
        self.addresses += [value or "" for name, value in attrs if name in wanted]


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.addresses
        assert not [address for address in loaded.addresses if re.match(r"(\w+:)?//", address)], page
        assert 'class="mermaid"' not in page.read_text(), "its script would come from elsewhere"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(\w+:)?//", sheet.read_text()), sheet


def test_nothing_of_the_machinery_is_published(site: Path) -> None:
    assert not [path for path in site.rglob("*.py") if "assets" not in path.parts]
    assert (site / "index.html").read_text().count("<h1") == 1


@pytest.mark.parametrize(
    ("page", "written", "shown"),
    [
        ("index.md", "[x](docs/scan.md#when-it-is-blind)", "[x](scan.md#when-it-is-blind)"),
        ("index.md", "[![a report](docs/images/report.png)](docs/images/report.png)",
         "[![a report](images/report.png)](images/report.png)"),
        ("index.md", "[Contributing](CONTRIBUTING.md)", "[Contributing](contributing.md)"),
        ("hooks/scorers.md", "[x](../../README.md#measured)", "[x](../index.md#measured)"),
        ("attacks.md", "[the code](../plugins/defensekit_attacks/fronting.py)",
         "the code (`plugins/defensekit_attacks/fronting.py`)"),
        ("attacks.md", "[recipes/](../recipes)", "recipes/"),
        ("attacks.md", "[x](https://arxiv.org/abs/2305.04547), [x](#gallery)",
         "[x](https://arxiv.org/abs/2305.04547), [x](#gallery)"),
    ],
)  # fmt: skip
def test_links_between_files_become_links_between_pages(page: str, written: str, shown: str) -> None:
    config = load_config(str(ROOT / "mkdocs.yml"))
    files = config.plugins.on_files(get_files(config), config=config)
    found = SimpleNamespace(file=files.get_file_from_path(page))
    assert config.plugins.on_page_markdown(written, page=found, config=config, files=files) == shown


@pytest.mark.parametrize("page", ["index", "idea", "numbers", "scan", "reference/recipe", "hooks/scorers"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen(page: str, width: int, site: Path, browser: webdriver.Chrome) -> None:
    log = open_page(browser, site / f"{page}.html", width)
    assert not [entry for entry in log if entry["level"] == "SEVERE"]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_every_picture_says_what_it_shows() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for says, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", page.read_text()):
            assert len(says.split()) > 3, f"{page}: {target}"
