"""`defensekit plugins check`: the conformance kit as a table and as JSON."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., tuple[Any, str, str]]


MINE = """
from typing import Annotated
from defensekit.api import Field, hookimpl, scorer

@scorer()
def mine(t, power: Annotated[float, Field(gt=0, le=4, description="p")] = 2.0):
    "|delta|^p."
    return t.drift.abs() ** power

@hookimpl
def defensekit_scorers():
    return {"mine": mine}
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`defensekit plugins check` with arguments: exit code, standard output, standard error."""
    from defensekit.cli.main import main

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["defensekit", "plugins", "check", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    return run


def test_the_command_prints_a_table_and_json(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    code, out, _ = command(str(tmp_path / "mine.py"), "--set", "power=1")
    assert code == 0, out
    assert "scorer mine (power=1.0)" in out
    assert "14 of 17 checks ran: 14 passed" in out
    assert "no order= was given" in out
    (tmp_path / "bad.py").write_text(MINE.replace("return t.drift", "print('hello')\n    return t.drift"))
    code, out, _ = command(str(tmp_path / "bad.py"), "--json")
    assert code == 1
    found = json.loads(out)
    assert (found["kind"], found["name"], found["ran"], found["of"], found["passed"]) == (
        "scorer",
        "mine",
        14,
        17,
        False,
    )
    [failed] = [check for check in found["checks"] if check["status"] == "failed"]
    assert failed["check"] == "prints-nothing"
    assert "'hello" in failed["reason"]


def test_the_command_takes_a_whole_plugin(command: Command) -> None:
    code, out, _ = command("finepurifying", "--no-call", "--kind", "selector", "--json", "--set", "fraction=0.5")
    assert code == 0
    names = [json.loads(line)["name"] for line in out.splitlines()]
    assert names == ["fraction", "threshold", "gamma-mixture"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diffusio"], "there is no component 'diffusio'. Did you mean 'diffusion'?"),
        (["reset", "--kind", "scorer"], "there is no scorer 'reset'."),
        (["reset", "--kind", "scorrer"], "--kind: there is no kind 'scorrer'. Did you mean 'scorer'?"),
        (["folder"], "model folder: the parameter 'path' of FolderModel: this key is missing (give one with --set"),
        (["word", "--set", "rate=2"], "the parameter 'rate' of Word: input should be less than or equal to 1, got 2"),
        (["word", "--set", "rate"], "--set rate: expected path=value"),
        (["word", "--set", "rat=1"], "--set: word has no parameter 'rat'. Did you mean 'rate'?"),
        (["nowhere.py"], "there is no file"),
    ],
)
def test_the_command_refuses(arguments: list[str], message: str, command: Command) -> None:
    code, _, said = command(*arguments)
    assert code == 2
    assert message in said


NEEDY = """
from defensekit.api import Field, Scorer, hookimpl, scorer

class Needy(Scorer):
    "Powers."
    words: list[str] = Field(description="which")
    def score(self, t):
        return t.drift.abs()

@scorer()
def mine(t):
    "|delta|."
    return t.drift.abs()

@hookimpl
def defensekit_scorers():
    return {"gone": "nowhere_to_be_found:Gone", "needy": Needy, "mine": mine}
"""


def test_one_that_needs_a_parameter_keeps_no_other_from_its_report(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NEEDY)
    code, out, said = command(str(tmp_path / "mine.py"))
    assert code == 2
    assert "14 of 17 checks ran: 14 passed" in out
    for text in (out, said):
        assert "the parameter 'words' of Needy: this key is missing" in " ".join(text.split())
        assert "can't be loaded" in text
    code, out, _ = command(str(tmp_path / "mine.py"), "--json", "--set", "words=[a]")
    found = {one["name"]: one for one in map(json.loads, out.splitlines())}
    assert code == 2
    assert {name: one["passed"] for name, one in found.items()} == {"gone": False, "needy": True, "mine": True}
    assert "can't be loaded" in found["gone"]["reason"]
