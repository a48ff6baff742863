"""`defensekit recipes`: shipped recipes, listed and copied."""

import resource
from pathlib import Path

import pytest
from typer.testing import CliRunner

from defensekit.cli.main import app
from tests.cli.helpers import command


def test_a_shipped_recipe_is_copied_once(tmp_path: Path) -> None:
    done = command("recipes", "copy", "quickstart", str(tmp_path))
    assert done.returncode == 0
    assert (tmp_path / "quickstart.yaml").read_text() == command("recipes", "show", "quickstart").stdout
    (tmp_path / "quickstart.yaml").write_text("mine")
    again = command("recipes", "copy", "quickstart", str(tmp_path))
    assert again.returncode == 2
    assert "already exists" in again.stderr
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"


def test_a_recipe_that_does_not_exist_leaves_no_file(tmp_path: Path) -> None:
    assert command("recipes", "copy", "quikstart", str(tmp_path)).returncode == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [["recipes", "copy", "quickstart"], ["plugins", "new", "mine", "--kind", "scorer", "--out"]]
)
def test_a_full_disk_leaves_nothing_half(arguments: list[str], tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # what a full disk looks like: the write fails
    try:
        with pytest.raises(OSError, match="File too large"):
            CliRunner().invoke(app, [*arguments, str(tmp_path)], catch_exceptions=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    assert CliRunner().invoke(app, [*arguments, str(tmp_path)]).exit_code == 0


def test_every_shipped_recipe_says_what_it_shows() -> None:
    from defensekit.recipe import shipped

    assert all(len(shipped.summary(name)) > 20 for name in shipped.names())
