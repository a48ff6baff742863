"""A kind of component is added in one place: its hook, the schema, the list of plugins and their check follow."""

import importlib.util
import re
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from defensekit.api import Component, Field
from defensekit.cli.main import app
from defensekit.components import KINDS
from defensekit.host.discovery import load_plugins
from defensekit.host.hookspecs import hook_of, specifications
from defensekit.recipe import json_schema
from defensekit.recipe.keys import Keys, Spec
from tests.conftest import ROOT


class Judge(Component):
    """Says whether a report may be believed."""

    kind: ClassVar[str] = "judge"


class Strict(Judge):
    """Believes nobody."""

    bound: float = Field(0.5, ge=0, le=1, description="how much is believed")


class Section(Keys):
    judge: Spec = Field(description="who believes it")
    judges: list[Spec] = Field(min_length=2, description="who else does")
    seed: int = 0


PLUGIN = """
from defensekit.api import hookimpl
from tests.host.test_kinds import Strict

@hookimpl
def defensekit_judges():
    return {"strict": Strict}
"""


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(KINDS, "judge", Judge)
    path = tmp_path / "judges.py"
    path.write_text(PLUGIN)
    return path


def test_a_new_kind_is_unknown_where_it_is_not_added(tmp_path: Path) -> None:
    path = tmp_path / "judges.py"
    path.write_text(PLUGIN)
    assert "there is no hook 'defensekit_judges'" in str(load_plugins([path]).problems)


def test_its_hook_follows(plugin: Path) -> None:
    host = load_plugins([plugin])
    assert not host.problems
    assert host.find(Judge, "strict") is Strict
    assert vars(specifications())["defensekit_judges"].__doc__ == (
        "Every judge of a plugin, by name. Says whether a report may be believed."
    )


def test_a_class_of_another_kind_is_refused(plugin: Path) -> None:
    plugin.write_text(PLUGIN.replace('{"strict": Strict}', '{"strict": dict}'))
    assert "expected 'module:Class' or a subclass of Judge" in str(load_plugins([plugin]).problems)


def test_keys_that_are_called_like_it_take_it_in_the_schema(plugin: Path) -> None:
    parts = json_schema._Writer(load_plugins([plugin])).parts(Section)
    assert parts.keys() == {"judge", "judges"}
    names, mapping = parts["judge"]["anyOf"]
    assert names == {"enum": ["strict"]}
    assert mapping["properties"]["bound"]["maximum"] == 1
    assert parts["judges"]["items"] == parts["judge"]
    assert parts["judges"]["minItems"] == 2


def test_its_components_are_listed_and_checked(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["plugins", "list", str(plugin)])
    assert re.search(r"judge +strict +.*: judges.py", done.stdout), done.output
    done = CliRunner().invoke(app, ["plugins", "check", str(plugin)])
    assert done.exit_code == 0, done.output
    assert "judge strict (bound=0.5)" in done.stdout
    assert "there is no `@ordinary_use` for the kind judge" in done.stdout


def test_its_page_follows(plugin: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = generate.hook("judge")
    assert "def defensekit_judges() -> Table: ..." in page
    assert "class Judge(Component)" in page


@pytest.mark.parametrize("kind", KINDS)
def test_every_hook_is_specified(kind: str) -> None:
    assert vars(specifications())[hook_of(kind)].__doc__.endswith(".")
