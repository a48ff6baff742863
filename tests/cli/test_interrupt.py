"""Ctrl-C ends a command cleanly, whatever is going on."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest


def test_ctrl_c_ends_cleanly(recipe: Path, tmp_path: Path) -> None:
    import signal

    recipe.write_text(recipe.read_text().replace("epochs: 8", "epochs: 1000"))
    whole = [sys.executable, "-m", "defensekit", "run", str(recipe), "-w", str(tmp_path / "w")]
    process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "poisoned rows" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    # Python ends itself by the signal, which a shell shows as 130 too, where the interrupt met code in exec().
    assert process.returncode in (130, -signal.SIGINT), err
    assert "resumes where it stopped" in err
    assert "Traceback" not in err
    assert out == ""
    assert not list((tmp_path / "w/store/unfinished").iterdir())


def test_an_interrupt_that_was_swallowed_is_raised_again() -> None:
    import signal

    from defensekit.cli.interrupt import remembered

    before = signal.getsignal(signal.SIGINT)
    with remembered() as interrupt:
        interrupt.progress("training", 1, 3)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupt.progress("training", 2, 3)
    assert signal.getsignal(signal.SIGINT) is before
    interrupt.progress("training", 3, 3)


def test_an_interrupt_in_another_exceptions_clothes_is_still_one() -> None:
    from defensekit.cli.interrupt import interrupted

    disguised = RuntimeError("could not import something")
    disguised.__cause__ = ImportError("half-way")
    disguised.__cause__.__context__ = KeyboardInterrupt()
    assert interrupted(disguised)
    assert not interrupted(RuntimeError("plain"))


def test_an_interrupt_while_importing_ends_like_any_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import defensekit.cli.main
    from defensekit.cli import command

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(defensekit.cli.main, "main", interrupt)
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "defensekit: stopped\n"
