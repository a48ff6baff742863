"""Style, types and the walls between the rooms."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy", "--no-error-summary"],
        ["importlinter.cli", "lint-imports"],
    ],
    ids=["ruff", "format", "mypy", "walls"],
)
def test_clean(command: list[str]) -> None:
    module, *arguments = command
    run = [sys.executable, "-m", module, *arguments]
    if module == "importlinter.cli":
        run = [str(Path(sys.executable).parent / "lint-imports")]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_wheel_brings_recipes_pages_and_the_kernels_source(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"defensekit/recipes/{path.name}" in names
    inside = ("utils/frame.html", "utils/style.css", "result/page.html", "result/model_card.md", "scanner/page.html")
    inside += ("studies/report/page.html", "studies/report/table.html", "gradients/kernel.c")
    assert {f"defensekit/{name}" for name in inside} <= names
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from defensekit.recipe import shipped; print(shipped.folder(), *shipped.names())"
    command = [sys.executable, "-c", code]
    where = {"PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run(command, env=where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.split()[0] == str(tmp_path / "site/defensekit/recipes")
    assert "quickstart" in found
