"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and fits a narrow screen."""

import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.conftest import ROOT, open_page


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """`docs/site.py`, under another name: Python has a module `site`."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs/site.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, ROOT / "docs/site.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served as a host would: its search does not work from files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


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
        assert loaded.addresses or page.is_relative_to(site / "board")
        assert not [address for address in loaded.addresses if re.match(r"(\w+:)?//", address)], page
        assert 'class="mermaid"' not in page.read_text(), "its script would come from elsewhere"
        for address in loaded.addresses:
            if not re.match(r"data:|/", address):
                assert (page.parent / re.sub("[?#].*", "", address)).exists(), f"{page}: {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(\w+:)?//", sheet.read_text()), sheet


def test_pages_alone_are_published(site: Path) -> None:
    assert not [path for path in site.rglob("*") if path.suffix in {".py", ".toml", ".yaml", ".txt", ".md"}]
    assert (site / "index.html").read_text().count("<h1") == 1


def test_the_board_is_there(site: Path) -> None:
    for page in ("leaderboard", "index"):
        assert 'href="board/index.html"' in (site / f"{page}.html").read_text().replace("./", "")
    board = (site / "board/index.html").read_text()
    assert "trivial baseline" in board
    for track in (ROOT / "leaderboard/rows").iterdir():  # of several tables every one is named above the first
        assert (f'href="#{track.name}"' in board) is ("-on-" not in track.name)


def test_every_page_is_in_the_navigation(maker: ModuleType) -> None:
    entries = re.findall(r"[\w/-]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(entries) == len(set(entries))
    assert {*entries} == {*maker.sources().values(), maker.API}


@pytest.mark.parametrize(
    ("source", "written", "shown"),
    [
        ("README.md", "[x](docs/scan.md#when-it-is-blind)", "[x](scan.md#when-it-is-blind)"),
        ("README.md", "[![a report](docs/images/report.png)](docs/images/report.png)",
         "[![a report](images/report.png)](images/report.png)"),
        ("README.md", "[Contributing](CONTRIBUTING.md)", "[Contributing](contributing.md)"),
        ("docs/hooks/scorers.md", "[x](../../README.md#limits)", "[x](../index.md#limits)"),
        ("docs/attacks.md", "[the code](../plugins/defensekit_attacks/fronting.py)",
         "the code (`plugins/defensekit_attacks/fronting.py`)"),
        ("docs/attacks.md", "[recipes/](../recipes)", "recipes/"),
        ("docs/hooks/scorers.md", "[x](../../leaderboard/rows)", "[x](../board/index.html)"),
        ("docs/attacks.md", "[x](https://arxiv.org/abs/2305.04547), [x](#gallery)",
         "[x](https://arxiv.org/abs/2305.04547), [x](#gallery)"),
    ],
)  # fmt: skip
def test_links_between_files_become_links_between_pages(
    source: str, written: str, shown: str, maker: ModuleType
) -> None:
    assert maker.relinked(written, source) == shown


def test_a_link_to_nothing_is_an_error(maker: ModuleType) -> None:
    with pytest.raises(FileNotFoundError, match=r"docs/idea.md has a link to nothing.md"):
        maker.relinked("[x](nothing.md)", "docs/idea.md")


@pytest.mark.parametrize(
    "page", ["index", "idea", "numbers", "scan", "reference/recipe", "hooks/scorers", "board/index"]
)
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen(page: str, width: int, address: str, browser: webdriver.Chrome) -> None:
    log = open_page(browser, f"{address}/{page}.html", width)
    assert not [entry for entry in log if entry["level"] == "SEVERE"]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_it_can_be_searched(address: str, browser: webdriver.Chrome) -> None:
    dialog = "const host = [...document.querySelectorAll('*')].find(one => one.shadowRoot); "
    open_page(browser, f"{address}/index.html", 1280)
    wait = WebDriverWait(browser, 10)
    wait.until(lambda opened: opened.execute_script(f"{dialog} return host?.shadowRoot.querySelector('input')"))
    browser.find_element(By.CLASS_NAME, "md-search__button").click()
    field = wait.until(lambda opened: opened.execute_script(f"{dialog} return host.shadowRoot.activeElement"))
    field.send_keys("ONION")
    wait.until(lambda opened: "Defenses" in opened.execute_script(f"{dialog} return host.shadowRoot.textContent"))


def test_every_picture_says_what_it_shows() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for says, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", page.read_text()):
            assert len(says.split()) > 3, f"{page}: {target}"
