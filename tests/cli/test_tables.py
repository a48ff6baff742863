"""Tables on terminals of any width, and where there is none."""

import pytest

from defensekit.cli.shared import console, table
from defensekit.cli.table import _number
from defensekit.components import Measured


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    drawn = table("model")
    for number in range(20):
        drawn.add_column(f"METRIC-{number}", justify="right")
    drawn.add_row("the base fine-tuned anew on clean rows", *(f"0.{number + 100}" for number in range(20)))
    console().print(drawn)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 80, 120])
def test_no_digit_is_elided(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = printed(capsys)
    assert "…" not in shown
    assert {f"0.{number + 100}" for number in range(20)} <= set(shown.split())
    assert {"base", "fine-tuned", "anew"} <= set(shown.split())


def test_a_line_that_is_piped_is_as_long_as_it_has_to_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    [row] = [line for line in printed(capsys).splitlines() if "0.100" in line]
    assert row.split()[-1] == "0.119"
    assert row.strip().startswith("the base fine-tuned anew on clean rows")


@pytest.mark.parametrize(("alone", "text"), [(True, "0.500 (0.250 to 0.750)"), (False, "0.500")])
def test_where_there_is_one_metric_its_interval_is_shown(alone: bool, text: str) -> None:
    assert _number(Measured(value=0.5, low=0.25, high=0.75, rows=9), alone) == text
    assert _number(None, alone) == "-"
