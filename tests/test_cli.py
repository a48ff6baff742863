"""The command line: light where it can be, exit codes, messages instead of tracebacks."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "scipy", "numpy", "pyarrow", "sklearn"):
            raise ImportError("heavy: " + name)
sys.meta_path.insert(0, Refuse())
sys.argv = ["defensekit", *ARGUMENTS]
from defensekit.cli import main
main()
"""


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "defensekit", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plugins", "list"], ["store", "list"]])
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = WITHOUT_TORCH.replace("ARGUMENTS", repr(arguments))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_plugins_list_names_every_component() -> None:
    text = command("plugins", "list", COLUMNS="120").stdout
    for name in ("diffusion", "accuracy-floor", "fine-tune", "word", "minilm", "movie-reviews", "asr"):
        assert name in text


def test_plugins_list_shows_a_broken_file_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    done = command("plugins", "list", str(tmp_path / "broken.py"))
    assert done.returncode == 0
    assert "plugin 'broken.py'" in done.stdout
    assert "pip install nowhere_to_be_found" in done.stdout
    assert "diffusion" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nowhere.yaml"], 2, "there is no recipe nowhere.yaml"),
        (["run"], 2, "Missing argument"),
        (["rnu"], 2, "No such command"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, message: str) -> None:
    done = command(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_recipe_is_exit_code_2_with_its_place(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("scorer: diffusion", "scorer: difusion"))
    done = command("run", str(recipe), "-w", str(tmp_path / "w"))
    assert done.returncode == 2
    assert f"{recipe}:8: defense.scorer" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_workspace_that_cannot_be_written_is_exit_code_1(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("run", str(recipe), "-w", str(tmp_path / "file/w"))
    assert done.returncode == 1
    assert "Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_cleanly(recipe: Path, tmp_path: Path) -> None:
    import signal

    recipe.write_text(recipe.read_text().replace("epochs: 8", "epochs: 1000"))
    whole = [sys.executable, "-m", "defensekit", "run", str(recipe), "-w", str(tmp_path / "w")]
    process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("poisoned rows"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    # Python ends itself by the signal, which a shell shows as 130 too, where the interrupt met code in exec().
    assert process.returncode in (130, -signal.SIGINT), err
    assert "goes on where it stopped" in err
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
    from defensekit.cli.main import _interrupted

    disguised = RuntimeError("could not import something")
    disguised.__cause__ = ImportError("half-way")
    disguised.__cause__.__context__ = KeyboardInterrupt()
    assert _interrupted(disguised)
    assert not _interrupted(RuntimeError("plain"))
