"""What a pull request that changes rows of leaderboards runs."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.leaderboard.helpers import said

SCRIPT = ROOT / ".github/leaderboard.sh"
[HOST] = re.findall(r'^HOST="(.*)" ', SCRIPT.read_text(), re.MULTILINE)
BASELINES = ("nothing", "fine-tuning", "random-reset", "from-base")
STUB = """#!/usr/bin/env bash
echo "$@" >> calls
[[ $2 == compare ]] && echo "compared $3"
[[ $2 == verify ]] && echo 'drew `word`, seed 3'
[[ $* != *broken* ]]
"""


def run(repository: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=repository, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One with rows that were there before, and `defensekit` that writes down how it was called."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/defensekit").write_text(STUB)
    (tmp_path / ".venv/bin/defensekit").chmod(0o755)
    for name in ("old", *BASELINES):
        change(tmp_path, f"pico-v1/{name}/row.json")
    run(tmp_path, "git", "init", "-q")
    commit(tmp_path)
    return tmp_path


def change(repository: Path, *files: str, text: str = "new") -> None:
    for file in files:
        path = repository / "leaderboard/rows" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def commit(repository: Path) -> str:
    run(repository, "git", "add", "leaderboard")
    run(repository, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "rows")
    return run(repository, "git", "rev-parse", "HEAD").stdout.strip()


def calls(repository: Path, base: str, trusted: str = "false") -> tuple[int, list[str], str]:
    """The script's exit code, what it called after `check`, and its summary."""
    commit(repository)
    done = run(repository, str(SCRIPT), BASE=base, SEED="7", TRUSTED=trusted, GITHUB_STEP_SUMMARY="summary")
    assert not done.stderr
    called, summary = repository / "calls", repository / "summary"
    check, *lines = called.read_text().splitlines()
    assert check == "leaderboard check leaderboard/rows"
    text = summary.read_text()
    called.unlink()
    summary.unlink()
    return done.returncode, lines, text


def test_changed_rows_are_run_again(repository: Path) -> None:
    base = commit(repository)
    new = ("pico-v1/new/row.json", "pico-v1/new/cells/a.json", "x-on-pico-v1/a/row.json", "x-on-pico-v1/attack.yaml")
    change(repository, *new, "pico-v1/old/row.json", "README.md")
    change(repository, "pico-v1/old/row.json", text="changed")
    code, lines, summary = calls(repository, base)
    options = f"--by {HOST} --cells 2 --seed 7 --quiet"
    expected = []
    for row in ("pico-v1/new", "x-on-pico-v1/a", "pico-v1/old"):
        expected.append(f"leaderboard verify leaderboard/rows/{row} {options}")
        expected.append(f"leaderboard compare leaderboard/rows/{row} leaderboard/rows")
    assert (code, lines) == (0, expected)
    assert summary.startswith("2 rows are added, 1 changed, 0 removed.\n")
    assert "added: leaderboard/rows/pico-v1/new\n" in summary
    assert "changed: leaderboard/rows/pico-v1/old\n" in summary
    assert "### pico-v1/new\n\n```text\ndrew word, seed 3\n```\n\ncompared leaderboard/rows/pico-v1/new\n" in summary


def test_a_plugin_runs_only_where_it_is_trusted(repository: Path) -> None:
    base = commit(repository)
    change(repository, "pico-v1/new/row.json", "pico-v1/new/mine.py")
    code, lines, summary = calls(repository, base)
    assert (code, lines) == (1, ["leaderboard compare leaderboard/rows/pico-v1/new leaderboard/rows"])
    assert "it needs the label `trusted`, once somebody has read its code.**\n```text\nmine.py\n" in summary
    code, lines, _ = calls(repository, base, "true")
    assert (code, lines[0].partition(" --quiet ")[2]) == (0, "--trust=mine.py")


def test_one_that_does_not_come_out_again_fails_and_the_others_run(repository: Path) -> None:
    base = commit(repository)
    change(repository, "pico-v1/broken/row.json", "pico-v1/new/row.json")
    code, lines, summary = calls(repository, base)
    assert (code, len(lines)) == (1, 4)
    assert "### pico-v1/broken\n\n```text\ndrew word" in summary
    assert calls(repository, commit(repository)) == (
        0,
        [],
        "0 rows are added, 0 changed, 0 removed.\n\n```text\n\n```\n",
    )


def test_rows_of_larger_tracks_are_checked_alone(repository: Path) -> None:
    base = commit(repository)
    change(repository, *(f"sst2-minilm-v1/{name}/row.json" for name in ("big", *BASELINES)))
    code, lines, summary = calls(repository, base)
    assert (code, lines) == (0, [])
    assert summary.startswith("5 rows are added")


def test_a_row_that_is_taken_away(repository: Path) -> None:
    base = commit(repository)
    (repository / "leaderboard/rows/pico-v1/old/row.json").unlink()
    code, lines, summary = calls(repository, base)
    assert (code, lines) == (1, [])
    assert "removed: leaderboard/rows/pico-v1/old\n" in summary
    assert "**A row of the board is not taken away by a pull request.**" in summary


def test_a_track_without_its_trivial_baselines(repository: Path) -> None:
    base = commit(repository)
    change(repository, "mine-v1/new/row.json")
    code, _, summary = calls(repository, base)
    assert code == 1
    assert "lacks the row of a trivial baseline.**\n```text\nleaderboard/rows/mine-v1/nothing\n" in summary


@pytest.mark.parametrize("by", [HOST, HOST.upper().replace(" ", "  ")])
def test_nobody_signs_as_the_host(by: str, repository: Path) -> None:
    base = commit(repository)
    verification = "pico-v1/old/verifications/a.json"
    change(repository, verification, text=json.dumps({"by": "A. Keeper"}))
    assert calls(repository, base)[0] == 0
    change(repository, verification, text=json.dumps({"by": by}).replace("C", "\\u0043"))
    code, _, summary = calls(repository, base)
    assert code == 1
    assert f"signs as the host ({HOST}) but the host.**\n```text\nleaderboard/rows/{verification}\n" in summary
    base = commit(repository)
    (repository / "leaderboard/rows" / verification).unlink()
    assert "**A verification is not taken away by a pull request.**" in calls(repository, base)[2]


def test_a_track_of_ones_own(repository: Path) -> None:
    script = repository / "leaderboard.sh"
    script.write_text(SCRIPT.read_text().replace("TRACKS=()", "TRACKS=(tracks/a.yaml tracks/b.yaml)"))
    done = run(repository, "bash", str(script), BASE=commit(repository), SEED="7", TRUSTED="false")
    assert (done.returncode, done.stderr) == (0, "")
    options = "--track=tracks/a.yaml --track=tracks/b.yaml"
    assert (repository / "calls").read_text() == f"leaderboard check leaderboard/rows {options}\n"


def test_the_workflow_calls_what_there_is() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/leaderboard.yml").read_text())["jobs"]
    steps = [step["run"] for step in jobs["rows"]["steps"] if "run" in step]
    assert steps[-1] == ".github/leaderboard.sh"
    for command in ("verify", "compare", "check"):
        text = said(command, "--help")[0]
        assert "Usage" in text
        assert "--track" in text


def test_the_site_is_built_for_the_host() -> None:
    assert f'HOST = "{HOST}"' in (ROOT / "docs/site.py").read_text()
    shipped = {path.stem for path in (ROOT / "leaderboard/tracks").glob("*.yaml")}
    assert re.findall(r"^RERUN=(\S+)", SCRIPT.read_text(), re.MULTILINE)[0] in shipped
