"""A stranger's recipe reaches what the user named, and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest

from defensekit.recipe import yaml_document
from defensekit.recipe.loader import KEPT, load_recipe, recipe_of
from defensekit.recipe.recipe import Recipe
from defensekit.recipe.trust import Trust
from defensekit.utils.errors import UsageError

RECIPE: dict[str, Any] = {
    "name": "r",
    "model": "minilm",
    "data": "movie-reviews",
    "attack": {"name": "word", "words": ["cf"], "target": 1, "rate": 0.1},
    "defense": {
        "scorer": "magnitude",
        "selector": {"name": "fraction", "fraction": 0.5},
        "purifier": ["reset"],
        "compare": {},
    },
}


def read(folder: Path, trusted: list[str], **changes: Any) -> Recipe:
    path = folder / "inside" / "recipe.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml_document.dump({k: v for k, v in (RECIPE | changes).items() if v is not None}))
    return recipe_of(yaml_document.load(path, (), KEPT), {}, Trust(trusted, path.parent))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model": "owner/name@main"}, "owner/name@main"),
        ({"model": {"name": "hub", "id": "owner/name", "revision": "main"}}, "owner/name@main"),
        ({"data": "owner/rows@main"}, "owner/rows@main"),
        ({"data": "/etc/passwd"}, "/etc/passwd"),
        ({"data": {"name": "file", "path": "../../../../../../../../etc/passwd"}}, "/etc/passwd"),
        ({"attack": None, "suspect": "/etc"}, "/etc"),
        ({"attack": None, "suspect": "$FOLDER"}, "/nowhere/at/all"),
    ],
)
def test_what_lies_outside_is_asked_for(
    tmp_path: Path, changes: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDER", "/nowhere/at/all")
    with pytest.raises(
        UsageError, match=re.escape("outside itself: nothing was opened or loaded. What") + f".*'{name}'"
    ):
        read(tmp_path, [], **changes)
    read(tmp_path, [name], **changes)


def test_what_is_inside_is_not(tmp_path: Path) -> None:
    read(tmp_path, [])
    read(tmp_path, ["/etc"], data="/etc/passwd")  # a folder, for what lies in it


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--trust '/etc/passwd' --trust 'owner/name@main'"):
        read(tmp_path, [], model="owner/name@main", data="/etc/passwd")


def test_a_plugin_is_loaded_if_its_file_is_named_and_said_before(tmp_path: Path) -> None:
    plugin, ran = tmp_path / "evil.py", tmp_path / "ran"
    plugin.write_text(f"open({str(ran)!r}, 'w')")
    for trusted in ([], [str(tmp_path)]):  # not even from a folder that is trusted: that holds data
        with pytest.raises(UsageError, match=re.escape(f"--trust '{plugin}'")):
            read(tmp_path, trusted, plugins=[str(plugin)])
    assert not ran.exists()
    said = []

    def announce(text: str) -> None:
        said.append((text, ran.exists()))

    with pytest.raises(UsageError, match="no function marked with @hookimpl"):
        load_recipe(tmp_path / "inside" / "recipe.yaml", announce=announce)
    assert said == [(f"loading the plugin file {plugin}, which is code and runs with your rights", False)]
    assert ran.exists()
