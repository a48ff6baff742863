"""The command line: light where it can be, exit codes, messages instead of tracebacks."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import defensekit
from defensekit.cli.main import main
from defensekit.cli.shared import to_write
from defensekit.host.tables import SUFFIXES
from tests.cli.helpers import command
from tests.conftest import ROOT, SMALL, shape

HEAVY = {"torch", "transformers", "datasets", "scipy", "numpy", "pyarrow", "sklearn"}
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if {name, name.split(".")[0]} & HEAVY:
            raise ImportError("heavy: " + name)
sys.meta_path.insert(0, Refuse())
sys.argv = ["defensekit", *ARGUMENTS]
from defensekit.cli import command
command()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["scan", "--help"],
        ["plugins", "list"],
        ["store", "list"],
        ["recipes", "list"],
        ["plugins", "show", "diffusion"],
    ],
)
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    heavy = HEAVY | ({"pydantic", "importlib.metadata"} if arguments == ["--help"] else set())  # a tenth of a second
    code = WITHOUT_TORCH.replace("ARGUMENTS", repr(arguments)).replace("HEAVY", repr(heavy))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_version_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert command("--version").stdout == f"defensekit {project['version']}\n"
    assert defensekit.__version__ == project["version"]
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == project["version"]
    assert f"\n## {project['version']} - " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nowhere.yaml"], 2, "there is no recipe nowhere.yaml"),
        (["run"], 2, "Missing argument"),
        (["rnu"], 2, "No such command"),
        (["plugins", "show", "difusion"], 2, "there is no component 'difusion'. Did you mean 'diffusion'?"),
        (["recipes", "show", "quickstrat"], 2, "there is no recipe 'quickstrat'. Did you mean 'quickstart'?"),
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


@pytest.mark.parametrize(
    "command", ["run x.yaml -w", "purify --base b --suspect s --out", "scan --base b --suspect s --out"]
)
def test_a_folder_to_write_to_is_expanded_and_is_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "loop").symlink_to("loop")
    for typed, said in (("", "got an empty one"), ("$HER/a", "HER is not set"), ("loop", "is no path (")):
        monkeypatch.setattr("sys.argv", ["defensekit", *command.split(), typed])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert said in capsys.readouterr().err
    for typed in ("$HERE/a", "~/store/a"):
        assert to_write(typed) == tmp_path / "store/a"


def test_a_workspace_that_cannot_be_written_is_exit_code_1(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("run", str(recipe), "-w", str(tmp_path / "file/w"))
    assert done.returncode == 1
    assert "Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_schema_prints_one_json_object(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from defensekit.api import hookimpl, scorer\n\n@scorer()\ndef mine(t, depth: int = 1):\n"
        "    'Mine.'\n    return t.drift\n\n@hookimpl\ndef defensekit_scorers():\n    return {'mine': mine}\n"
    )
    schema = json.loads(command("schema", str(tmp_path / "mine.py")).stdout)
    assert "depth" in json.dumps(schema["else"]["properties"]["defense"])


def test_settings_change_a_run_and_a_dry_run_computes_nothing(recipe: Path, tmp_path: Path) -> None:
    arguments = ["run", str(recipe), "-w", str(tmp_path / "w"), "--set", "training.epochs=1", "--set", "seed=7"]
    done = command(*arguments, "--dry-run", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "seed: 7" in done.stdout
    assert "epochs: 1" in done.stdout
    assert "suspect: answers to dev rows" in done.stdout
    assert "nothing was computed" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert not (tmp_path / "w").exists()
    found = json.loads(command(*arguments, "--dry-run", "--json").stdout)
    assert found["recipe"]["seed"] == 7
    assert not any(stage["cached"] for stage in found["stages"])
    # What is printed is itself a recipe.
    (tmp_path / "resolved.yaml").write_text(done.stdout[: done.stdout.index("\n\n")])
    again = command("run", str(tmp_path / "resolved.yaml"), "-w", str(tmp_path / "w"), "--dry-run", "--json")
    assert json.loads(again.stdout) == found


def test_a_wrong_setting_is_exit_code_2(recipe: Path) -> None:
    done = command("run", str(recipe), "--set", "training.epoch=1")
    assert done.returncode == 2
    assert "--set training.epoch=1: training.epoch: unknown key. Did you mean 'epochs'?" in done.stderr


def test_tables_are_readable_at_80_columns_without_colour_and_in_ascii() -> None:
    for arguments in (["plugins", "list"], ["plugins", "show", "fine-tune"], ["recipes", "list"], ["doctor"]):
        done = command(*arguments, COLUMNS="80", HF_HUB_OFFLINE="1", PYTHONIOENCODING="ascii:strict")
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 110


@pytest.mark.parametrize("name", ["purify", "scan"])
def test_help_names_every_format_of_rows(name: str) -> None:
    [formats] = re.findall(r"CSV.*Parquet", command(name, "--help", COLUMNS="200").stdout, re.DOTALL)
    assert re.findall(r"\b[A-Z]{3,}\b", formats.upper()) == [one[1:].upper() for one in SUFFIXES]


def test_a_reader_that_has_seen_enough_is_told_nothing() -> None:
    line = f"{sys.executable} -m defensekit schema | head -c 10"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_full_disk_takes_no_exit_code_away() -> None:
    with open("/dev/full", "w") as full:
        whole = [sys.executable, "-m", "defensekit", "run", "nowhere.yaml"]
        assert subprocess.run(whole, stderr=full, stdout=subprocess.PIPE, check=False).returncode == 2


def test_what_is_printed_is_what_stands_there(recipe: Path, tmp_path: Path) -> None:
    words = 'attack.words=[":smile:", "[bold]x[/bold]", "[/x]"]'
    done = command("run", str(recipe), "--dry-run", "-w", str(tmp_path / "w"), "--set", words)
    assert done.returncode == 0, done.stderr
    for word in (":smile:", "[bold]x[/bold]", "[/x]"):
        assert word in done.stdout


NOISY = """
from defensekit.api import hookimpl, scorer

print("noise while importing")

@scorer()
def noisy(t):
    "Says what it does."
    print("noise while scoring")
    return t.drift**2

@hookimpl
def defensekit_scorers():
    return {"noisy": noisy}
"""


def test_json_is_alone_on_standard_output_whatever_a_plugin_prints(recipe: Path, warm: Path) -> None:
    (recipe.parent / "noisy.py").write_text(NOISY)
    shape(recipe, **SMALL, defense__choose=None, defense__compare={}, defense__purifier=["reset"])
    shape(recipe, plugins=["noisy.py"], defense__scorer="noisy")
    done = command("run", str(recipe), "-w", str(warm), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "pico"
    assert "noise while scoring" in done.stderr
    assert json.loads(command("schema", str(recipe.parent / "noisy.py")).stdout)


ODD = """
from collections.abc import Callable
from defensekit.api import Scorer, hookimpl

class Odd(Scorer):
    "Red: \x1b[31m."
    how: Callable[[int], int] = abs
    def score(self, t):
        raise ValueError("\x1b[31mred")

@hookimpl
def defensekit_scorers():
    return {"odd": Odd, "[/x]": Odd}
"""


@pytest.mark.slow
def test_an_odd_plugin_harms_nobody_else(recipe: Path, tmp_path: Path) -> None:
    plugin = recipe.parent / "odd.py"
    plugin.write_text(ODD)
    listed = command("plugins", "list", str(plugin), COLUMNS="200")
    assert listed.returncode == 0
    assert "its scorer '[/x]' has an invalid name" in listed.stdout
    assert "diffusion" in listed.stdout
    shown = command("plugins", "show", "odd", str(plugin))
    assert shown.returncode == 1
    assert "a parameter that can't be written in a recipe" in shown.stderr
    assert "\x1b" not in shown.stdout
    assert "diffusion" in command("schema", str(plugin)).stdout
    plugin.write_text(ODD.replace(', "[/x]": Odd', ""))
    done = command("run", str(recipe), "--dry-run", "--set", f"plugins=[{plugin}]", "--set", "defense.scorer=odd")
    assert done.returncode == 2
    assert "can't be written as JSON" in done.stderr


@pytest.mark.slow
def test_what_failed_names_the_log_that_has_more(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "failing.py").write_text(NOISY.replace("return t.drift**2", "raise ValueError('\\x1b[31mred')"))
    settings = [
        f"plugins=[{recipe.parent / 'failing.py'}]",
        "defense.scorer=noisy",
        "training.epochs=1",
        "data.train=48",
    ]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    done = command("run", str(recipe), "-w", str(tmp_path / "w"), *arguments)
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    [log] = (tmp_path / "w").glob("runs/*/run.log")
    assert f"(more in {log})" in done.stderr
    assert "Traceback" in log.read_text()


def test_a_manifest_that_is_none_is_a_damaged_artifact(tmp_path: Path) -> None:
    for name, text in (
        ("a" * 64, "[1]"),
        ("b" * 64, '{"stage": "x"}'),
        ("c" * 64, '{"stage": {"title": "[/x]"}, "created": "[/x]"}'),
    ):
        (tmp_path / "store/artifacts" / name).mkdir(parents=True)
        (tmp_path / "store/artifacts" / name / "manifest.json").write_text(text)
    done = command("store", "list", "-w", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("damaged") == 2
    assert "[/x]" in done.stdout


@pytest.mark.parametrize("name", ["x" * 300 + ".yaml", "a\\0b.yaml"])
def test_a_recipe_that_can_have_no_such_name(name: str) -> None:
    done = command("run", name)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory; smaller values of batch_size or data.max_length take less (MemoryError)"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nAnd more"),
            "out of memory; smaller values of batch_size or data.max_length take less, and with CUDA_VISIBLE_DEVICES= "
            "it runs on the CPU (CUDA out of memory.)",
        ),
    ],
)
def test_too_little_memory_is_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    import defensekit.cli.main

    def fail() -> None:
        raise error

    monkeypatch.setattr(defensekit.cli.main, "app", fail)
    with pytest.raises(SystemExit) as caught:
        defensekit.cli.main.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"defensekit: {told}\n"


def test_completion_knows_names() -> None:
    from defensekit.cli import plugins, recipes

    assert "diffusion" in plugins._names("diff")
    assert recipes._names("quick") == ["quickstart"]
