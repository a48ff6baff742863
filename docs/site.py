"""The documentation as a site: gather its pages in a folder, then let Zensical make HTML of them.

    python docs/site.py [FOLDER] [--serve]

In the repository a link goes to a file and works wherever the repository is shown. The site has the pages alone: README
is its first page, the leaderboard's rows are the board, and a link to a file that is no page becomes its text and path.
FOLDER (`build/site` by default) gets `docs/`, `mkdocs.yml` and `site/`; `--serve` shows the site on this machine.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

from defensekit.leaderboard.page import build

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
API = "reference/api.md"
ROWS, BOARD = "leaderboard/rows", "board"
HOST = "the CI of DefenseKit"  # as .github/leaderboard.sh signs what it ran again

_PICTURE = r"!\[[^\]]*\]\([^)\s]+\)"
_LINK = re.compile(rf"\[({_PICTURE}|[^\[\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def gather(folder: Path) -> None:
    """Write everything that the site is made of into a folder.

    Raises:
        FileNotFoundError: a page has a link to a file that is not in the repository.
    """
    shutil.rmtree(folder / "docs", ignore_errors=True)
    for source, page in sources().items():
        target = folder / "docs" / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(relinked((ROOT / source).read_text(encoding="utf-8"), source), encoding="utf-8")
    (folder / "docs" / API).write_text(_api(), encoding="utf-8")
    build([ROOT / ROWS], folder / "docs" / BOARD, host=HOST)
    shutil.copytree(ROOT / "docs/images", folder / "docs/images")
    shutil.copy(ROOT / "docs/style.css", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)


def sources() -> dict[str, str]:
    """Every Markdown file of the site, by its path in the repository: its path on the site."""
    inside = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    return PAGES | {path: path.removeprefix("docs/") for path in sorted(inside)}


def relinked(markdown: str, source: str) -> str:
    """Turn links between files of the repository into links between pages."""
    folder, pages = (ROOT / source).parent, sources() | {"docs/api.txt": API, ROWS: f"{BOARD}/index.html"}
    here = Path(pages[source]).parent

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        text = _LINK.sub(link, text)  # a picture that is a link
        path = Path(os.path.normpath(folder / target)).relative_to(ROOT).as_posix()
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{source} has a link to {target}, and there is no such file")
        page = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/images/") else None)
        if page:
            return f"[{text}]({os.path.relpath(page, here)}{anchor or ''})"
        return text if path in text else f"{text} (`{path}`)"

    return _LINK.sub(link, markdown)


def _api() -> str:
    says, *lines = (ROOT / "docs/api.txt").read_text(encoding="utf-8").splitlines()
    text = f"# All signatures\n\n{says.lstrip('# ')}\n"
    for module, names in groupby(lines, lambda line: "dk" if line.startswith("dk.") else ".".join(line.split(".")[:2])):
        listed = "\n".join(name.removeprefix(f"{module}.") for name in names).replace("\nclass ", "\n\nclass ")
        text += f"\n## {module}\n\n```text\n{listed}\n```\n"
    return text


def main() -> None:
    """Make the site, or serve it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build/site")
    parser.add_argument("--serve", action="store_true")
    given = parser.parse_args()
    gather(given.folder)
    action = ["serve"] if given.serve else ["build", "--strict"]
    command = [sys.executable, "-m", "zensical", *action, "--config-file", given.folder / "mkdocs.yml"]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
