"""Ctrl-C ends a command cleanly, whatever is going on."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.helpers import started


def test_ctrl_c_ends_cleanly(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("epochs: 8", "epochs: 1000"))
    with started("run", str(recipe), "-w", str(tmp_path / "w")) as process:
        while "poisoned rows" not in process.said():
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        done = process.ended()
    # Python ends itself by the signal, which a shell shows as 130 too, where the interrupt met code in exec().
    assert done.returncode in (130, -signal.SIGINT), done.stderr
    assert "resumes where it stopped" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list((tmp_path / "w/store/unfinished").iterdir())


def test_an_interrupt_that_was_swallowed_is_raised_again() -> None:
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
