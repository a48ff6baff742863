"""`defensekit recipes`: shipped recipes, listed and copied."""

from pathlib import Path

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


def test_every_shipped_recipe_says_what_it_shows() -> None:
    from defensekit.recipe import shipped

    assert all(len(shipped.summary(name)) > 20 for name in shipped.names())
