"""What mkdocs is told beside mkdocs.yml: pages that lie outside of docs/, and links that lead out of it.

In the repository a link goes to a file and works wherever the repository is shown. The site has the pages alone: the
README is its first, and a link to anything else that is no page becomes its text and the file's path.
"""

import logging
import os
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
API = "reference/api.md"

_log = logging.getLogger("mkdocs.hooks.site")
_PICTURE = r"!\[[^\]]*\]\([^)\s]+\)"
_LINK = re.compile(rf"\[({_PICTURE}|[^\[\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere, and the listing of the public API as a page."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, API, content=_api()))
    return files


def _api() -> str:
    says, *lines = (ROOT / "docs/api.txt").read_text(encoding="utf-8").splitlines()
    text = f"# Public API\n\n{says.lstrip('# ')}\n"
    for module, names in groupby(lines, lambda line: ".".join(line.split(".")[:2])):
        listed = "\n".join(name.removeprefix(f"{module}.") for name in names).replace("\nclass ", "\n\nclass ")
        text += f"\n## {module}\n\n```text\n{listed}\n```\n"
    return text


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    uri = page.file.src_uri
    sources = {page: source for source, page in PAGES.items()}
    folder = (ROOT / sources.get(uri, f"docs/{uri}")).parent

    def moved(target: str) -> str | None:
        """Where a link leads on the site; None where there is no page."""
        path = Path(os.path.normpath(folder / target))
        if not path.exists():
            _log.warning("%s: there is no file %s", uri, target)
        name = path.relative_to(ROOT).as_posix()
        found = PAGES.get(name, name.removeprefix("docs/"))
        return os.path.relpath(found, Path(uri).parent) if files.get_file_from_path(found) else None

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        text = _LINK.sub(link, text)  # a picture that is a link
        if there := moved(target):
            return f"[{text}]({there}{anchor or ''})"
        path = os.path.relpath(folder / target, ROOT)
        return text if path in text else f"{text} (`{path}`)"

    return _LINK.sub(link, markdown)
