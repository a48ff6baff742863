"""The tests lie as the code does: a folder for each package, and no file that is too long to read."""

from tests.conftest import ROOT

TESTS = ROOT / "tests"
OTHERS = {"docs", "plugins", "project", "written_against"}  # folders that test no package of defensekit


def names(folder: str) -> set[str]:
    """Packages in a folder."""
    return {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}


def test_no_file_is_long() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > 400} == {}


def test_every_folder_is_a_package_of_defensekit() -> None:
    folders = {path.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/*.py")}
    assert folders == names("tests") == names("defensekit") | OTHERS


def test_every_shipped_plugin_has_a_folder() -> None:
    assert names("tests/plugins") == {name.removeprefix("defensekit_") for name in names("plugins")}
