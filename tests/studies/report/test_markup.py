"""Tables as HTML, Markdown and LaTeX: text from outside is text."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from defensekit.studies.report.markup import html, latex, markdown
from defensekit.studies.report.table import Column, Table, TableCell, TableRow

EVIL = '<b onclick="x()">a|b</b> & $x_1$ \\input{/etc/passwd} `c` [l](u) %\n# ~^{}*'


@pytest.fixture
def evil() -> Table:
    """A table with markup of every language wherever text may stand."""
    columns = (Column(EVIL, EVIL, "lower", floor=0.1), Column(EVIL, "B"))
    rows = (
        TableRow((EVIL, "x"), (TableCell((0.5, 0.7)), TableCell(failed=2))),
        TableRow(("y", "[z]"), (TableCell(), TableCell()), oracle=EVIL),
    )
    return Table(EVIL, (EVIL, "b"), columns, rows, 2, (EVIL,))


def test_html_is_escaped(evil: Table) -> None:
    page = html(evil)
    assert "<b " not in page
    assert page.count("&lt;b onclick=") == 6


def test_markdown_is_escaped(evil: Table) -> None:
    lines = markdown(evil).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    for line in lines[:1] + rows[:1] + rows[2:]:
        assert not re.search(r"(?<!\\)[<`\[$~#]", line)
    assert "0.600 ± 0.141" in rows[2]


def test_latex_is_escaped(evil: Table) -> None:
    made = latex(evil)
    known = r"\\(begin|end|centering|caption|\w+rule|multicolumn|pm|uparrow|downarrow|text\w+)\b"
    known += r"|\\(resizebox|ifdim|width|linewidth|else|fi)\b"
    rest = re.sub(known, "", made)
    assert not re.search(r"\\[a-zA-Z]", rest)
    assert not re.search(r"(?<!\\)[%#^~]", rest)
    rows = [line for line in made.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows[1:]} == {3}
    assert not re.search(r"(?<!\\)\$(?!\\pm|\\uparrow|\\downarrow|[\s)&])", made.replace(r"$\pm$", ""))
    lines = made.replace(r"\{", "").replace(r"\}", "").splitlines()
    opened = {line: line.count("{") - line.count("}") for line in lines if line.count("{") != line.count("}")}
    assert list(opened.values()) == [1, -1], opened  # \resizebox, which holds the tabular


def test_latex_has_a_minus_for_a_number_below_nothing() -> None:
    columns, cells = (Column("", "ACC"),), (TableCell((-0.25,)),)
    made = latex(Table("2026-11", ("a-b-2",), columns, (TableRow(("-1 --2",), cells),), 1, ("[-0.5, 1]",)))
    assert re.findall(r"(\S*)\$-\$(\S+)", made) == [("{[}", "0.5,"), ("", "1"), ("-{}", "2"), ("", "0.250")]
    assert "2026-11" in made
    assert "a-b-2" in made


HOSTILE = ["*a_b%c&d#e$f{g}h\\i~j^k<l>m|n\"o'p`q", "Ünï – “quo” … ± ×", "世 😀 Ωμ Жук «ąđ»"]
HOSTILE += ["--- --", "[opt] *star", "?` !`"]


def hostile() -> Table:
    columns = (Column("gr_p & 100%", "ACC", "higher"), Column("gr_p & 100%", "ASR", "lower", floor=0.1))
    rows = tuple(TableRow((label, label), (TableCell((0.5, 0.6)), TableCell((0.1,), 1, 1))) for label in HOSTILE)
    return Table("ti_tle % & #", ("model", "de_f"), columns, rows, 2, ("n_o%te “x” ± …",))


def test_latex_has_a_line_under_each_group_of_columns() -> None:
    columns = tuple(Column(group, "ACC") for group in ("", "word", "word", "sentence"))
    made = latex(Table("t", ("model", "defense"), columns, (), 1, ()))
    assert "\\cmidrule(lr){4-5}\\cmidrule(lr){6-6}\n" in made
    assert "cmidrule" not in latex(Table("t", ("model",), columns[:1], (), 1, ()))


def test_latex_of_what_it_can_not_print() -> None:
    made = latex(hostile())
    assert "(U+4E16) (U+1F600) (U+03A9)(U+03BC) (U+0416)" in made
    assert "-{}-{}- -{}-" in made
    assert not re.search(r"\\\\\n[*\[]", made)  # it would be taken for a part of the end of the line above
    assert made.isascii() or set(made) - set(map(chr, range(128))) <= set("Ünï“”…×")


def test_latex_can_be_compiled(tmp_path: Path) -> None:
    if not (command := shutil.which("pdflatex")):
        pytest.skip("there is no pdflatex on this machine")
    (tmp_path / "table.tex").write_text(latex(hostile()), encoding="utf-8")
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\\input{table}\\end{document}\n"
    )
    options = ["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    done = subprocess.run([command, *options], cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "main.pdf").is_file()
