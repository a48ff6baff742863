"""What a stranger wrote reaches a terminal as text, and a spreadsheet as text."""

import pandas
import pytest

from defensekit.cli.shared import console, table
from defensekit.studies.frame import csv_cell
from defensekit.utils.errors import choices, listing, printable_name

EVIL = "\x1b[2J\x1b]0;title\x07\u202eevil\x9b31m\udc80"


@pytest.mark.parametrize("stderr", [False, True])
def test_no_console_prints_a_control_character(capsys: pytest.CaptureFixture[str], stderr: bool) -> None:
    out = console(stderr=stderr)
    out.print(f"line {EVIL}")
    rows = table(EVIL, "b")
    rows.add_row(EVIL, EVIL)
    out.print(rows)
    captured = capsys.readouterr()
    printed = captured.err if stderr else captured.out
    assert r"\x1b[2J" in printed
    assert all(character.isprintable() or character == "\n" for character in printed)


def test_a_name_is_one_line_of_bounded_length() -> None:
    assert printable_name("a\nevery number is the same") == r"a\nevery number is the same"
    assert len(printable_name("x" * 3_000_000)) < 300
    assert listing(["a\nb", EVIL]).isprintable()


def test_no_cell_of_a_csv_is_a_formula() -> None:
    for cell in ("=1+1", "@SUM(A1)", "+1", "-1", "\t=1"):
        assert csv_cell(cell) == f"'{cell}"
    assert csv_cell("word") == "word"
    assert pandas.Series(["=1", None], dtype="string").map(csv_cell, na_action="ignore")[0] == "'=1"


def test_a_message_lists_the_closest_of_many_names() -> None:
    assert choices("x", ["a", "bc"]) == " (known: a, bc)"
    many = [f"name-{i}" for i in range(40)] + ["scorer"]
    listed = choices("scorrer", many, "defensekit plugins list")
    assert listed.startswith(" Did you mean 'scorer'? (known: scorer, ")
    assert listed.endswith(" … 35 more; `defensekit plugins list` shows them)")
    assert listed.count("name-") == 5
    assert choices("x" * 10_000, many).endswith(" … 35 more)")
