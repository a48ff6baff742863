"""`defensekit scan`: what it ends with."""

import errno
import io
import json
from pathlib import Path

import pytest

from defensekit.scanner.result import Scan
from tests.conftest import write_table
from tests.scanner.helpers import SENTENCES, Command


def test_exit_codes(command: Command, base: Path, clean: Path, poisoned: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "rows.csv", SENTENCES)
    given = ["--base", str(base), "--clean", str(table), "--out", str(tmp_path / "out")]
    code, out, _ = command(*given, "--suspect", str(poisoned))
    assert code == 3
    assert out.startswith("Suspicious: 'cf' turns")
    assert (tmp_path / "out/scan.html").is_file()
    code, out, err = command(*given, "--suspect", str(clean), "--json", "--quiet")
    assert (code, err) == (0, "")
    assert Scan.model_validate_json(out).verdict.suspicious is False
    assert json.loads((tmp_path / "out/scan.json").read_text()) == json.loads(out)


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_verdict(
    command: Command, base: Path, poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "rows.csv", SENTENCES)
    monkeypatch.setattr("sys.stderr", Full())
    code, out, _ = command(
        *["--base", str(base), "--clean", str(table)], *["--out", str(tmp_path / "out"), "--suspect", str(poisoned)]
    )
    assert code == 3
    assert out.startswith("Suspicious: 'cf' turns")


def test_the_verdict_is_told_before_its_page_is_written(command: Command, base: Path, tmp_path: Path) -> None:
    given = ["--base", str(base), "--suspect", str(base), "-q", "--out"]
    (tmp_path / "out/scan.html").mkdir(parents=True)
    for also in ([], ["--json"]):
        code, out, err = command(*given, str(tmp_path / "out"), *also)
        assert (code, "No verdict" in out, "scan.html" in err) == (1, True, True)
    (tmp_path / "dangling").symlink_to("nowhere")
    code, _, err = command("--base", "nowhere", "--suspect", "nowhere", "--out", str(tmp_path / "dangling"))
    assert (code, "is a link that leads to nothing" in err) == (2, True)


def test_exit_codes_of_mistakes(command: Command, base: Path, clean: Path, tmp_path: Path) -> None:
    code, _, err = command("--base", "owner/name", "--suspect", str(clean))
    assert (code, "'owner/name' needs a revision: write owner/name@main" in err) == (2, True)
    code, _, err = command("--base", str(base), "--suspect", f"{clean}s")
    assert (code, "there is no model folder" in err, f"Did you mean {clean.name!r}?" in err) == (2, True, True)
    code, _, err = command("--base", str(base), "--suspect", str(clean), "--clean", str(tmp_path / "none.csv"))
    assert (code, "none.csv" in err) == (2, True)
    (tmp_path / "file").touch()
    code, _, err = command("--base", "nowhere", "--suspect", str(clean), "--out", str(tmp_path / "file"))
    assert (code, "expected a folder" in err) == (2, True)
    code, out, err = command("--base", str(base), "--suspect", str(base), "--out", str(tmp_path / "out"), "-q")
    assert (code, out.count("No verdict: no weight that both models have differs."), err) == (1, 1, "")
