"""A table as HTML, Markdown and LaTeX; every text in it is escaped for where it goes."""

import re
from itertools import accumulate, groupby, pairwise

from defensekit.studies.report.table import Column, Table, TableRow
from defensekit.utils.html import fill

ARROWS = {"higher": "↑", "lower": "↓"}

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        '"': "''",
        "|": r"\textbar{}",
        "[": "{[}",  # after \\ it would begin an option
        "*": "{*}",  # and this would be taken for a part of it
        "`": r"\textasciigrave{}",
        "±": r"$\pm$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "–": r"\textendash{}",
        "Δ": r"$\Delta$",
    }
)
# What pdfLaTeX prints beyond ASCII without further packages; it stops at anything else.
_LATIN = frozenset(map(chr, range(0xA1, 0x180))) - frozenset("«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")
_PRINTS = _LATIN | frozenset("“”‘’…•†‡€™→←‰")
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>|#!&~$"})


def flat(text: str) -> str:
    """A text as one line without anything that can't be printed."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def heading(column: Column, floored: bool = True) -> str:
    """A column's title, with an arrow to where it is better, and the floor.

    Args:
        column: the column.
        floored: whether to say its floor, if it has one.

    Returns:
        The text.
    """
    floor = f" (floor {column.number(column.floor)})" if floored and column.floor is not None else ""
    return f"{column.title}{' ' + ARROWS[column.better] if column.better else ''}{floor}"


def labels(row: TableRow) -> list[str]:
    """A row's labels; what is an oracle is called one."""
    return [*row.labels[:-1], f"{row.labels[-1]} (oracle: {row.oracle})" if row.oracle else row.labels[-1]]


def html(table: Table) -> str:
    """The table as HTML, with its notes below."""
    return fill(
        __package__,
        "table.html",
        table=table,
        groups=_groups(table),
        heading=heading,
        labels=labels,
        parted=parted(table),
    )


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, under its title."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(flat(cell).translate(_MARKDOWN) for cell in cells) + " |"

    heads = [f"{column.group}: {heading(column)}" if column.group else heading(column) for column in table.columns]
    lines = [f"**{flat(table.title).translate(_MARKDOWN)}**", "", line([*table.heads, *heads])]
    lines.append("|" + "---|" * len(table.heads) + "---:|" * len(table.columns))
    lines += [line([*labels(row), *_texts(table, row)]) for row in table.rows]
    return "\n".join([*lines, "", flat(" ".join(table.notes)).translate(_MARKDOWN), ""])


def _tex(character: str) -> str:
    """A character for LaTeX; one that pdfLaTeX can't print as its number."""
    if ord(character) in _LATEX:
        return _LATEX[ord(character)]
    return character if character.isascii() or character in _PRINTS else f"(U+{ord(character):04X})"


def latex(table: Table) -> str:
    r"""The table for LaTeX, with the rules of the package booktabs; the notes are its caption.

    pdfLaTeX can print it: characters of other scripts stand as their numbers. graphicx makes a table that is wider than
    a line as small as that.
    """

    def tex(text: str) -> str:
        escaped = re.sub("-(?=-)", "-{}", "".join(map(_tex, flat(text))))  # two would become a dash
        return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)  # a minus is no hyphen

    def line(cells: list[str]) -> str:
        return " & ".join(map(tex, cells)) + r" \\"

    caption = tex(" ".join([f"{table.title}.", *table.notes]))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    fitted = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
    lines.append(rf"{fitted}\begin{{tabular}}{{{'l' * len(table.heads)}{'r' * len(table.columns)}}}")
    lines.append(r"\toprule")
    groups = _groups(table)
    if any(group for group, _ in groups):
        above = [rf"\multicolumn{{{count}}}{{c}}{{{tex(group)}}}" for group, count in groups]
        lines.append(" & ".join([*[""] * len(table.heads), *above]) + r" \\")
        spans = pairwise(accumulate((count for _, count in groups), initial=len(table.heads)))
        below = zip(groups, spans, strict=True)
        lines.append("".join(rf"\cmidrule(lr){{{before + 1}-{last}}}" for (group, _), (before, last) in below if group))
    lines += [line([*table.heads, *map(heading, table.columns)]), r"\midrule"]
    for row, apart in zip(table.rows, parted(table), strict=True):
        lines += [r"\midrule"] * apart
        lines.append(line([*labels(row), *_texts(table, row)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def _texts(table: Table, row: TableRow) -> list[str]:
    return [table.text(cell, column) for cell, column in zip(row.cells, table.columns, strict=True)]


def _groups(table: Table) -> list[tuple[str, int]]:
    """The groups of columns that stand beside each other, and how many columns each has."""
    return [(group, len(list(columns))) for group, columns in groupby(column.group for column in table.columns)]


def parted(table: Table) -> list[bool]:
    """Whether a line parts a row from the one above it: where its kind, or its first label, is another."""
    kinds = [(row.reference, row.labels[0] if not row.reference and len(table.heads) > 1 else "") for row in table.rows]
    return [i > 0 and kinds[i - 1] != kind for i, kind in enumerate(kinds)]
