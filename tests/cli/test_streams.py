"""Standard output and error that are closed, full, or of another encoding: what a command ends with stays the same."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from defensekit.cli.main import app
from defensekit.cli.shared import ESCAPED
from defensekit.pipeline.store import Store
from tests.cli.helpers import command

# What a command is to its streams, without the seconds that a command's imports take.
VERDICT = """
import sys
from defensekit.cli.shared import console, prepare_streams, verdict_by_exit_code

@verdict_by_exit_code()
def scan():
    console().print("Suspicious")
    sys.stdout.write("x" * 100_000)
    sys.exit(3)

prepare_streams()
scan()
"""


def ended(script: str, redirected: str) -> tuple[int, str]:
    """Exit code, and what is on standard error, of a script in a shell with redirections."""
    line = f'"$0" -c "$1" {redirected}'
    shell = ["bash", "-o", "pipefail", "-c", line, sys.executable, script]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("redirected", "error"),
    [
        ("> /dev/full", "defensekit: standard output: No space left on device\n"),
        ("2> /dev/full", ""),
        ("> /dev/full 2> /dev/full", ""),
        ("| true", ""),
        (">&-", ""),
        ("2>&-", ""),
        (">&- 2>&-", ""),
    ],
)
def test_a_verdict_stays_the_exit_code(redirected: str, error: str) -> None:
    assert ended(VERDICT, redirected) == (3, error)


def test_other_results_that_are_lost_are_a_failure() -> None:
    whole = (
        "import sys; sys.argv = ['defensekit', 'recipes', 'show', 'quickstart']\nfrom defensekit.cli import command\n"
    )
    assert ended(f"{whole}command()", "> /dev/full")[0] not in (0, 2, 3, 4)


def commands(of: Any) -> list[Any]:
    """A command, or all of a group."""
    return [one for inner in of.commands.values() for one in commands(inner)] if hasattr(of, "commands") else [of]


def test_every_command_whose_exit_code_is_a_verdict_keeps_it() -> None:
    told = [one for one in commands(typer.main.get_command(app)) if "xit code" in (one.help or "")]
    assert {one.name for one in told} >= {"scan", "purify", "check", "verify", "doctor"}
    for one in told:
        own = one.callback.__wrapped__  # typer wraps every command once
        assert inspect.unwrap(own) is not own, one.name


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_every_encoding_can_say_it(encoding: str, tmp_path: Path) -> None:
    stage = {"kind": "data", "title": "Übung \U0001f600", "components": {}, "inputs": {}}
    with Store(tmp_path / "store").create(stage):
        pass
    done = command("store", "list", "-w", str(tmp_path), PYTHONIOENCODING=f"{encoding}:strict")
    assert done.returncode == 0, done.stderr
    assert "bung" in done.stdout


def test_json_stays_what_it_was() -> None:
    text = "Übung \U0001f600 \ud800"
    assert json.loads(f'"{text}"'.encode("latin-1", ESCAPED).decode("latin-1")) == text
    assert json.loads(f'"{text}"'.encode("utf-8", ESCAPED)) == text
