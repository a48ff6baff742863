"""What a user installs: the wheel has everything, and works where nothing else of the project is."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def output(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it meets nothing of this checkout, and no model that was made before."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"DEFENSEKIT_CACHE": str(cwd / "cache")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    output(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel installed.

    It borrows the libraries of this one by their folder. Python reads `.pth` files of its own folder only, so that what
    makes this checkout importable is not borrowed.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    [own] = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (own / "borrowed.pth").write_text("\n".join(borrowed))
    output(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    return python.parent


def test_it_has_recipes_pages_and_the_kernels_source(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"defensekit/recipes/{path.name}" in names
    inside = ("utils/frame.html", "utils/style.css", "result/page.html", "result/model_card.md", "scanner/page.html")
    inside += ("studies/report/page.html", "studies/report/table.html", "gradients/kernel.c")
    assert {f"defensekit/{name}" for name in inside} <= names


def test_what_is_imported_comes_from_it(fresh: Path, tmp_path: Path) -> None:
    code = "import defensekit, defensekit_attacks as plugin; print(defensekit.__file__, plugin.__file__, sep='\\n')"
    for file in output(fresh / "python", "-c", code, cwd=tmp_path).splitlines():
        assert Path(file).is_relative_to(fresh.parent)
    assert "quickstart" in output(fresh / "defensekit", "recipes", "list", cwd=tmp_path)


def test_it_runs_the_smallest_recipe(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(output(fresh / "defensekit", "recipes", "show", "pico", cwd=tmp_path))
    printed = json.loads(output(fresh / "defensekit", "run", "recipe.yaml", "--json", "--quiet", cwd=tmp_path))
    code = "import sys, defensekit as dk; print(*sorted(set(dk.results(sys.argv[1]).metric)))"
    metrics = output(fresh / "python", "-c", code, f"{printed['folder']}/result.json", cwd=tmp_path)
    assert metrics.split() == ["acc", "asr", "excess-asr"]
    suspect, purified = (printed["models"][name]["metrics"] for name in ("suspect", "purified"))
    assert purified["acc"]["value"] > 0.8
    assert purified["asr"]["value"] < 0.5 < suspect["asr"]["value"]
