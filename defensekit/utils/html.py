"""Pages from templates and small tables for notebooks, with every text escaped."""

from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """A table under a title, with a line below it."""

    def line(tag: str, cells: Iterable[object]) -> str:
        inner = "".join(f"<{tag} style='text-align:left'>{escape(str(cell))}</{tag}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    body = "".join(line("td", row) for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<b>{escape(title)}</b><table>{line('th', header)}{body}</table>{below}"


def fill(package: str, template: str, **values: Any) -> str:
    """Render a template of a package, with every text escaped; it may extend the templates beside this module."""
    return _environment(package).get_template(template).render(**values)


@cache  # it keeps templates compiled
def _environment(package: str) -> "Environment":
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("defensekit.utils", ".")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
