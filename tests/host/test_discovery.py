"""The plugin host: what one plugin does wrong touches nobody else."""

from pathlib import Path

import pytest

from defensekit.host.discovery import load_plugins
from defensekit.host.registry import source_digest
from defensekit.utils.errors import UsageError

GOOD = """
from defensekit.api import hookimpl, scorer

@scorer(needs={"curvature"})
def ratio(t, exponent: float = 1.0):
    "Drift over curvature."
    return t.drift**2 / (t["curvature"]**exponent + 1e-12)

@hookimpl
def defensekit_scorers():
    return {"ratio": ratio}
"""


def plugin(tmp_path: Path, text: str, name: str = "mine.py") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_shipped_plugins_load_without_a_problem() -> None:
    host = load_plugins()
    assert host.problems == []
    assert {"diffusion", "magnitude", "random", "wanda"} <= set(host.names("scorer"))
    for kind, names in host.registrations.items():
        for name in names:
            assert host.find(kind, name).kind == kind


def test_a_scorer_in_twelve_lines(tmp_path: Path) -> None:
    assert len(GOOD.strip().splitlines()) <= 12
    host = load_plugins([plugin(tmp_path, GOOD)])
    found = host.find("scorer", "ratio")
    assert found.needs == {"curvature"}
    assert found(exponent=0.5).parameters() == {"exponent": 0.5}
    assert found.__doc__ == "Drift over curvature."


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("import nowhere_to_be_found", ["importing it failed", "pip install nowhere_to_be_found"]),
        ("raise RuntimeError('not today')", ["importing it failed", "RuntimeError: not today"]),
        ("import sys; sys.exit(3)", ["importing it failed", "SystemExit"]),
        ("def broken(:", ["importing it failed", "SyntaxError"]),
        ("x = 1", ["no function marked with @hookimpl"]),
        (
            "from defensekit.api import hookimpl\n@hookimpl\ndef defensekit_scorer():\n return {}",
            ["no hook 'defensekit_scorer'", "Did you mean 'defensekit_scorers'"],
        ),
        (
            "from defensekit.api import hookimpl\n@hookimpl\ndef defensekit_scorers(names):\n return {}",
            ["defensekit_scorers", "names"],
        ),
        (
            "from defensekit.api import hookimpl\n@hookimpl\ndef defensekit_scorers():\n return 3",
            ["hook 'defensekit_scorers' returned 3", "expected a mapping"],
        ),
        (
            "from defensekit.api import hookimpl\n@hookimpl\ndef defensekit_scorers():\n return {'a': dict}",
            ["scorer 'a'", "subclass of Scorer"],
        ),
        (
            "from defensekit.api import hookimpl\n@hookimpl\ndef defensekit_scorers():\n return 1 / 0",
            ["hook 'defensekit_scorers' failed", "ZeroDivisionError"],
        ),
    ],
)
def test_a_broken_plugin_is_one_message(tmp_path: Path, text: str, parts: list[str]) -> None:
    host = load_plugins([plugin(tmp_path, text, "broken.py"), plugin(tmp_path, GOOD)])
    assert "ratio" in host.names("scorer")
    [problem] = host.problems
    assert "plugin 'broken.py'" in str(problem)
    for part in parts:
        assert part in str(problem)


def test_a_broken_local_plugin_stops_its_own_recipe(recipe: Path) -> None:
    from defensekit.recipe.loader import load_recipe

    plugin(recipe.parent, "import nowhere_to_be_found", "broken.py")
    recipe.write_text("plugins: [broken.py]\n" + recipe.read_text())
    with pytest.raises(UsageError, match=r"pico.yaml:1: plugins: plugin 'broken.py'.*nowhere_to_be_found"):
        load_recipe(recipe)


def test_a_name_that_two_plugins_claim_names_both(tmp_path: Path) -> None:
    host = load_plugins([plugin(tmp_path, GOOD.replace("ratio", "magnitude"))])
    with pytest.raises(UsageError, match=r"'magnitude' is claimed by plugin 'baselines' .* and plugin 'mine.py'"):
        host.find("scorer", "magnitude")
    assert host.find("scorer", "spectral").kind == "scorer"


def test_a_lazy_path_that_leads_nowhere(tmp_path: Path) -> None:
    text = "from defensekit.api import hookimpl\n@hookimpl\ndef defensekit_scorers():\n return {'a': 'no_such:Thing'}"
    host = load_plugins([plugin(tmp_path, text)])
    assert "a" in host.names("scorer")
    with pytest.raises(UsageError, match=r"scorer 'a' of plugin 'mine.py' .*no_such"):
        host.find("scorer", "a")


def test_an_edited_plugin_has_another_digest(tmp_path: Path) -> None:
    path = plugin(tmp_path, GOOD)
    before = source_digest(load_plugins([path]).find("scorer", "ratio"))
    path.write_text(GOOD.replace("1e-12", "1e-9"))
    assert source_digest(load_plugins([path]).find("scorer", "ratio")) != before
