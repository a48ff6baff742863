"""`defensekit doctor`: what is here, what is missing, and what to do about it."""

from pathlib import Path

import pytest

from tests.cli.helpers import command


def test_doctor_says_what_is_here(tmp_path: Path) -> None:
    done = command("doctor", HF_HUB_OFFLINE="1", DEFENSEKIT_CACHE=str(tmp_path), COLUMNS="80")
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("python", "torch", "threads", "device", str(tmp_path), "HF_HUB_OFFLINE"):
        assert part in done.stdout
    assert "everything that a run needs is installed" in done.stdout


def test_doctor_says_what_is_missing_and_how_to_fix_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import version

    from defensekit.cli import doctor

    wanted = ["rich>=999", "nothing-of-that-name>=2", "pluggy>=1", "gt-not-there==1; extra == 'demo'"]
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    found = {finding.what: finding for finding in doctor._packages()}
    assert found["rich"].state == found["nothing-of-that-name"].state == "broken"
    assert found["rich"].text == version("rich")
    assert found["nothing-of-that-name"].fix == "pip install 'nothing-of-that-name>=2'"
    assert found["demo"].fix == "pip install 'defensekit[demo]'"
    assert not doctor.show(list(found.values()))
    assert "to be fixed: rich, nothing-of-that-name" in capsys.readouterr().out
