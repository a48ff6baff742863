"""What a plugin does wrong: one message, with whose fault it is and what to do, and nobody else's work goes down."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import defensekit
from defensekit.host.discovery import load_plugins
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import DefenseKitError, UsageError

Write = Callable[..., Path]

SCORER = """
from typing import Annotated
from defensekit.api import Field, Scorer, hookimpl

class Mine(Scorer):
    "Mine."
    def score(self, t):
        {body}
        return t.drift.abs()

@hookimpl
def defensekit_scorers():
    return {{"mine": Mine}}
"""


@pytest.fixture
def written(recipe: Path) -> Write:
    """Write a plugin beside a recipe that is quick, and let the recipe name and use it."""

    def write(code: str, use: tuple[str, str] = ("diffusion", "mine")) -> Path:
        (recipe.parent / "mine.py").write_text(code)
        text = recipe.read_text().replace(*use).replace("epochs: 8", "epochs: 1").replace("epochs: 2", "epochs: 0")
        text = text.replace("train: 240", "train: 48").replace("values: [0.25, 0.5]", "values: [0.25]")
        recipe.write_text("plugins: [mine.py]\n" + text)
        return recipe

    return write


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Install a distribution whose plugin is one module, as pip would leave it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def install(name: str, code: str, requires: tuple[str, ...] = (), version: str = "1.2") -> Path:
        monkeypatch.delitem(sys.modules, f"defensekit_{name}_module", raising=False)
        info = folder / f"defensekit_{name}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: defensekit-{name}", f"Version: {version}"]
        (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]) + "\n")
        (info / "entry_points.txt").write_text(f"[defensekit]\n{name} = defensekit_{name}_module\n")
        (folder / f"defensekit_{name}_module.py").write_text(code)
        return folder

    return install


# -- plugins that don't load -------------------------------------------------------------------------------------------


def test_a_missing_dependency_is_told_with_the_line_that_mends_it(site: Callable[..., Path], recipe: Path) -> None:
    site("foo", "import absent_module_xyz", ("absent-distribution-xyz>=2", "torch"))
    [problem] = load_plugins().problems
    assert str(problem) == (
        "plugin 'foo' (defensekit-foo 1.2): importing it failed, it needs the module 'absent_module_xyz', which is not "
        "installed (pip install 'absent-distribution-xyz>=2'); the plugin is left out"
    )
    assert load_recipe(recipe).defense.scorer.name == "diffusion"


def test_a_component_whose_dependency_is_missing_is_told_when_it_is_asked_for(site: Callable[..., Path]) -> None:
    code = (
        'from defensekit.api import hookimpl\n@hookimpl\ndef defensekit_scorers():\n    return {"mine": "absent.x:Y"}\n'
    )
    site("foo", code)
    host = load_plugins()
    assert host.problems == []
    with pytest.raises(UsageError, match=r"the scorer 'mine' of plugin 'foo' \(defensekit-foo 1.2\) can't be loaded"):
        host.find("scorer", "mine")


def test_a_hook_that_fails_leaves_the_others(site: Callable[..., Path]) -> None:
    site("foo", SCORER.format(body="pass") + "\n@hookimpl\ndef defensekit_selectors():\n    return 1 / 0\n")
    host = load_plugins()
    assert "mine" in host.names("scorer")
    [problem] = host.problems
    assert "(defensekit-foo 1.2): its hook 'defensekit_selectors' failed, ZeroDivisionError" in str(problem)
    assert "what the hook registers is left out (an update may fix it: pip install --upgrade defensekit-foo)" in str(
        problem
    )


def test_a_clash_names_both_and_what_to_do(site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    site("foo", SCORER.format(body="pass").replace('"mine"', '"magnitude"'))
    with pytest.raises(UsageError, match=r"'baselines' .* and plugin 'foo' .*in DEFENSEKIT_PLUGINS"):
        load_plugins().find("scorer", "magnitude")
    assert load_plugins().find("scorer", "diffusion")
    monkeypatch.setenv("DEFENSEKIT_PLUGINS", "baselines, finepurifying")
    assert load_plugins().find("scorer", "magnitude").__name__ == "Magnitude"


def test_only_chosen_plugins_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEKIT_PLUGINS", "")
    host = load_plugins()
    assert (host.names("scorer"), host.names("executor")) == ([], ["auto", "in-process"])
    monkeypatch.setenv("DEFENSEKIT_PLUGINS", "finepurifing")
    with pytest.raises(UsageError, match=r"no plugin 'finepurifing' is installed. Did you mean 'finepurifying'\?"):
        load_plugins()


# -- plugins that misbehave in a run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(of_the_small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes here have in common is there."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(of_the_small_recipe, folder / "store")
    return folder


WRONG = {
    "raises": ("raise ValueError('not today')", r"failed: ValueError: not today \(mine.py:8\)"),
    "exits": ("raise SystemExit(0)", r"failed: SystemExit: 0 \(mine.py:8\)"),
    "nan": ("return t.drift * float('nan')", "gave NaN or infinity for .*, expected finite scores"),
    "shape": ("return t.drift.flatten()[:1]", r"gave shape \[1\] for .*, expected shape \["),
    "nothing": ("return None", "gave None for .*, expected shape"),
    "writes": ("t.suspect.mul_(0)", "wrote into the tensors that it was given of .*, expected a new tensor of scores"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_scorer_that_is_wrong(what: str, written: Write, workspace: Path) -> None:
    body, reason = WRONG[what]
    recipe = written(SCORER.format(body=body))
    with pytest.raises(DefenseKitError, match=rf"(?s)^plugin 'mine.py' \(.*\): the scorer Mine {reason}") as caught:
        defensekit.run(recipe, workspace)
    assert "registered by defensekit_scorers; `defensekit plugins check " in str(caught.value)
    assert "mine.py` tries it by itself)" in str(caught.value)


SELECTOR = """
import torch
from defensekit.api import Selector, WeightStep, hookimpl

class Mine(Selector):
    "Mine."
    def select(self, scores):
        {select}

class Step(WeightStep):
    "Mine."
    def apply(self, t, weight, selection):
        {apply}

@hookimpl
def defensekit_selectors():
    return {{"mine": Mine}}

@hookimpl
def defensekit_purifiers():
    return {{"step": Step}}
"""
ALL = "return {name: scored.eligible for name, scored in scores.items()}"


@pytest.mark.parametrize(
    ("select", "apply", "reason"),
    [
        ("return {name: s.eligible.flatten() for name, s in scores.items()}", "return weight", "Mine gave shape"),
        ("return {}", "return weight", "Mine must answer for the tensors it was given"),
        (ALL, "return weight.zero_()", "Step wrote into what it was handed of"),
        (ALL, "t.base.zero_(); return weight", "Step wrote into what it was handed of"),
        (ALL, "return weight * 2", "Step changed the shape, the dtype or unselected weights of"),
    ],
)
def test_a_selector_or_a_step_that_is_wrong(
    select: str, apply: str, reason: str, written: Write, workspace: Path
) -> None:
    recipe = written(SELECTOR.format(select=select, apply=apply), ("{name: fraction, fraction: 0.5}", "mine"))
    text = recipe.read_text().replace("[reset,", "[step,")
    recipe.write_text("\n".join(line for line in text.splitlines() if "choose:" not in line))
    with pytest.raises(DefenseKitError, match=r"^plugin 'mine.py' \(.*\): the (selector|purifier) " + reason):
        defensekit.run(recipe, workspace)


def test_what_a_plugin_prints_is_no_result(
    written: Write, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from defensekit.cli.main import main

    recipe = written("print('hello at import')\n" + SCORER.format(body="print('hello', t.name)"))
    for arguments in (
        ["run", str(recipe), "-w", str(workspace), "--json"],
        ["plugins", "list", str(recipe.parent / "mine.py")],
    ):
        monkeypatch.setattr(sys, "argv", ["defensekit", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, said = capsys.readouterr()
        assert (stopped.value.code, "hello" in out, "hello at import" in said) == (0, False, True)
        if arguments[0] == "run":
            assert json.loads(out)["name"] == "pico"
            assert "hello encoder" in said


def test_a_plugin_that_seeds_touches_no_other_number(written: Write, workspace: Path) -> None:
    import torch

    recipe = written(SCORER.format(body="import random, torch; random.seed(1); torch.manual_seed(1)"))
    random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), float(torch.rand(()))
    random.seed(5)
    torch.manual_seed(5)
    defensekit.run(recipe, workspace)
    assert (random.random(), float(torch.rand(()))) == expected


@pytest.mark.slow
def test_a_plugin_that_draws_from_the_global_state_draws_the_same_every_time(written: Write, tmp_path: Path) -> None:
    import torch

    recipe = written(SCORER.format(body="import torch; return torch.rand(t.drift.shape)"))
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(defensekit.run(recipe, tmp_path / str(seed)).models["purified"])
    assert made[0].metrics == made[1].metrics
    assert made[0].reset == made[1].reset


# -- what a recipe requires, and --strict ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        (
            "defensekit-foo>=2",
            r"pico.yaml:1: requires.0: 'defensekit-foo>=2' is needed, and 1.2 is installed \(pip",
        ),
        (
            "defensekit-bar",
            r"'defensekit-bar' is needed, and it is not installed \(pip install 'defensekit-bar'",
        ),
        ("defensekit foo", r"requires.0: 'defensekit foo' is not a requirement"),
        ("foo @ file:///foo", r"requires.0: 'foo @ file:///foo' names an address"),
    ],
)
def test_what_a_recipe_requires(requires: str, message: str, site: Callable[..., Path], recipe: Path) -> None:
    site("foo", SCORER.format(body="pass"))
    text = recipe.read_text()
    recipe.write_text(f"requires: ['defensekit-foo>=1.2,<2']\n{text}")
    assert load_recipe(recipe).resolved()["requires"] == ["defensekit-foo>=1.2,<2"]
    recipe.write_text(f"requires: ['{requires}']\n{text}")
    with pytest.raises(UsageError, match=message):
        load_recipe(recipe)


@pytest.mark.parametrize("more", [pytest.param(["--dry-run"], marks=pytest.mark.slow), []])
def test_strict_turns_a_warning_into_an_error(more: list[str], site: Callable[..., Path], written: Write) -> None:
    folder = site("foo", "raise RuntimeError('not today')")
    recipe = written(SCORER.format(body="pass"))
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "defensekit", "run", str(recipe), "-w", str(recipe.parent / "w"), *more]
    done = subprocess.run([*command, "--strict"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "defensekit: plugin 'foo' (defensekit-foo 1.2): importing it failed, RuntimeError: not today" in done.stderr
    assert "--strict stops at it" in done.stderr
    if more:  # without it, it is a warning and no more
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "warning: plugin 'foo'" in done.stderr


# -- a hook that is given up -------------------------------------------------------------------------------------------


def test_a_deprecated_hook_works_and_points_at_the_authors_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from defensekit.host import hookspecs, registry

    warning = DeprecationWarning("defensekit_judges is going away in 0.3, use defensekit_scorers")
    monkeypatch.setitem(hookspecs.RENAMED, "defensekit_judges", ("scorer", warning))
    path = tmp_path / "old.py"
    path.write_text(SCORER.format(body="pass").replace("defensekit_scorers", "defensekit_judges"))
    loaded = load_plugins([path])
    assert "mine" in loaded.names("scorer")
    [problem] = loaded.problems
    line = path.read_text().splitlines().index("@hookimpl") + 1
    assert f"{path}:{line}: defensekit_judges is going away in 0.3, use defensekit_scorers" in str(problem)
    assert "left out" not in str(problem)
    registry.require(loaded, ["old.py"])
