"""`defensekit plugins new`: every kind of package passes its own tests and runs its own recipe."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from defensekit import components
from defensekit.host.scaffold import KINDS, new_package
from defensekit.pipeline.detection import RATES
from defensekit.utils.errors import UsageError
from tests.conftest import ROOT

EXAMPLE = ROOT / "docs/examples/defensekit-relative"


def test_there_is_one_of_every_kind() -> None:
    assert KINDS.keys() == components.KINDS.keys()
    commands = (ROOT / "docs/reference/cli.md").read_text()
    help_text = commands[commands.index("### `defensekit plugins new`") :][:800]
    assert [name for name in KINDS if not re.search(rf"\b{name}\b", help_text)] == []


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of each kind, and the example of the documentation."""
    out = tmp_path_factory.mktemp("packages")
    shutil.copytree(EXAMPLE, out / "example", ignore=shutil.ignore_patterns("__pycache__"))
    return {kind: new_package(f"my-{kind}", kind, out) for kind in KINDS} | {"example": out / "example"}


def installed(packages: dict[str, Path], site: Path) -> dict[str, str]:
    """An environment in which the packages are as good as installed: their code, and what pip would write of them."""
    for folder in packages.values():
        about = tomllib.loads((folder / "pyproject.toml").read_text())
        [(plugin, module)] = about["project"]["entry-points"]["defensekit"].items()
        name = about["project"]["name"]
        info = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[defensekit]\n{plugin} = {module}\n")
        (site / module).symlink_to(folder / module)
    return {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_every_kind_passes_its_own_tests_and_ours(packages: dict[str, Path], tmp_path: Path) -> None:
    environment = installed(packages, tmp_path)
    for folder in packages.values():
        style = [sys.executable, "-m", "ruff", "check", "--select=E,F,I,UP,B", folder]
        done = subprocess.run(style, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    run_tests(packages, Path(sys.executable), environment, tmp_path)


def run_tests(packages: dict[str, Path], python: Path, environment: dict[str, str], folder: Path) -> None:
    tests = [str(package / "tests") for package in packages.values()]
    command = [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--import-mode=importlib", *tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    # A component comes to about 15; nothing was left out for want of an installed plugin.
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 13 * len(packages)
    assert "no installed plugin has it" not in done.stdout


def test_their_recipes_load(packages: dict[str, Path], tmp_path: Path) -> None:
    code = "import sys, defensekit; print(*(defensekit.load_recipe(p).name for p in sys.argv[1:]))"
    load = [sys.executable, "-c", code, *(str(folder / "recipe.yaml") for folder in packages.values())]
    done = subprocess.run(load, env=installed(packages, tmp_path), capture_output=True, text=True, check=False)
    assert done.stdout.split() == [*(f"my-{kind}" for kind in KINDS), "relative"], done.stderr


def test_a_recipe_asks_for_what_its_kind_needs(packages: dict[str, Path]) -> None:
    asked = {kind: yaml.safe_load((packages[kind] / "recipe.yaml").read_text()) for kind in KINDS}
    assert min(RATES) * asked["detector"]["data"]["dev"] >= 1  # or a run warns of its thresholds
    assert asked["attack"]["metrics"] == ["acc", "asr", "excess-asr"]
    assert {recipe["data"]["dev"] for kind, recipe in asked.items() if kind != "detector"} == {16}


@pytest.mark.slow
def test_a_recipe_runs_as_it_is_written(packages: dict[str, Path], tmp_path: Path) -> None:
    run_recipe(packages["scorer"] / "recipe.yaml", installed(packages, tmp_path), Path(sys.executable), tmp_path)


def run_recipe(recipe: Path, environment: dict[str, str], python: Path, folder: Path) -> None:
    command = [str(python), "-m", "defensekit", "run", str(recipe), "--quiet", "--workspace", str(folder / "w")]
    environment = {**environment, "DEFENSEKIT_CACHE": str(folder / "cache"), "PIP_NO_INDEX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(name in done.stdout for name in ("purified", "filtered", "sanitized"))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("mine", "scorrer", r"there is no kind 'scorrer'. Did you mean 'scorer'\?"),
        ("mine", "data", r"there is no kind 'data'. Did you mean 'dataset'\?"),
        ("Mine", "scorer", "'Mine' is not a valid name for a plugin, expected small letters"),
        ("../mine", "scorer", "is not a valid name"),
        ("class", "scorer", "is not a valid name"),
        ("magnitude", "scorer", "there is a scorer 'magnitude' already, of plugin 'baselines'"),
    ],
)
def test_it_refuses(name: str, kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        new_package(name, kind, tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    made = new_package("defensekit-mine", "scorer", tmp_path)
    assert made.name == "defensekit-mine"
    (made / "README.md").write_text("changed")
    with pytest.raises(UsageError, match="already exists; nothing was written"):
        new_package("mine", "selector", tmp_path)
    assert (made / "README.md").read_text() == "changed"


def test_the_command_says_what_is_next(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "defensekit", "plugins", "new", "mine", "--kind", "metric", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"cd {tmp_path / 'defensekit-mine'} && pip install -e '.[test]' && pytest" in done.stdout
    assert "demo" not in done.stdout  # its recipe needs nothing more
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "already exists" in done.stderr


@pytest.mark.slow
def test_installed_by_a_stranger(packages: dict[str, Path], tmp_path: Path) -> None:
    """The wheel of this project and every package in one fresh environment: their tests, checks and recipes.

    The environment is a venv with nothing of ours. What we depend on (torch and the like) it borrows, by a path file,
    from the one that runs the tests; the editable install of ours in there is not seen that way.
    """
    python = fresh_environment(tmp_path / "venv")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path / "wheels")]
    subprocess.run([*build, str(ROOT), *map(str, packages.values())], check=True, capture_output=True)
    wheels = [str(path) for path in (tmp_path / "wheels").glob("*.whl")]
    assert len(wheels) == 1 + len(packages)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *wheels], check=True, capture_output=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    code = "import defensekit, defensekit_my_scorer as mine; print(defensekit.__file__, mine.__file__)"
    found = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.count(str(tmp_path / "venv")) == 2
    run_tests(packages, python, environment, tmp_path)
    for folder in packages.values():
        run_recipe(folder / "recipe.yaml", environment, python, tmp_path)
    new = [python, "-m", "defensekit", "plugins", "new", "another", "--kind", "scorer", "--out", str(tmp_path)]
    subprocess.run(new, cwd=tmp_path, check=True, capture_output=True)  # the templates are in the wheel
    check = [python, "-m", "defensekit", "plugins", "check", "relative"]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def fresh_environment(folder: Path) -> Path:
    """A venv that sees what is installed here, but not what is installed here for editing; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    # A folder that a path file names is searched for modules; the path files that lie in it are not read.
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.parametrize(
    ("name", "kind", "called"),
    [("choice", "rule", "ChoiceRule"), ("none", "scorer", "NoneScorer"), ("data-row", "dataset", "DataRow"),
     ("row", "dataset", "RowDataset"), ("mine", "scorer", "Mine")],
)  # fmt: skip
def test_a_class_has_a_name_of_its_own(name: str, kind: str, called: str, tmp_path: Path) -> None:
    folder = new_package(name, kind, tmp_path)
    module = folder / f"defensekit_{name.replace('-', '_')}"
    for path in module.glob("*.py"):
        compile(path.read_text(), path.name, "exec")
    text = (module / f"{name.replace('-', '_')}.py").read_text()
    assert text.count(f"class {called}(") == 1
    assert f":{called}" in (module / "__init__.py").read_text()
    imported = [line for line in text.splitlines() if line.startswith(("from", "import", "    from"))]
    assert not [line for line in imported if re.search(rf"\b{called}\b", line)]
