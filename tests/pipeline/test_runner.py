"""Local plugins take part, and a run that was killed goes on where it stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import defensekit
from defensekit.utils.errors import DefenseKitError
from tests.conftest import SMALL, shape
from tests.pipeline.helpers import COMPUTED, Watching

LOCAL = '''
from contextlib import nullcontext
from defensekit.api import Executor, ModelStep, Observer, Workers, compute, hookimpl, scorer

@scorer()
def mine(t, scale: float = 1.0):
    """Drift, scaled."""
    if scale == 13:
        raise ValueError("unlucky")
    return t.drift.abs() * scale

class Notes(Observer):
    def stage_finished(self, title, seconds, reused):
        with open(PLACE, "a") as file:
            file.write(title + "\\n")

class Noting(Workers):
    def execute(self, stage, store, report):
        with open(PLACE, "a") as file:
            file.write("execute " + stage["kind"] + "\\n")
        compute(stage, store, report)

class Counting(Executor):
    def open(self):
        return nullcontext(Noting())

class Nosy(ModelStep):
    """Looks for paths in what it is handed."""

    def train(self, model, context):
        names = [model.name_or_path, model.config._name_or_path, context.tokenizer.name_or_path]
        assert names == ["suspect"] * 3, names
        assert "/" not in str(context.tokenizer.init_kwargs.get("name_or_path"))

@hookimpl
def defensekit_scorers():
    return {"mine": mine}

@hookimpl
def defensekit_purifiers():
    return {"nosy": Nosy}

@hookimpl
def defensekit_observers():
    return {"notes": Notes}

@hookimpl
def defensekit_executors():
    return {"counting": Counting}
'''


@pytest.mark.slow
def test_a_local_plugin_takes_part(recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "notes.txt"
    (recipe.parent / "mine.py").write_text(LOCAL.replace("PLACE", repr(str(place))))
    shape(
        recipe,
        plugins=["mine.py"],
        defense__scorer="mine",
        defense__purifier=["reset", "nosy"],
        observers=["notes"],
        executor="counting",
        defense__choose=None,
        data__train=48,
        training__epochs=1,
    )
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.recipe["defense"]["scorer"] == {"name": "mine", "scale": 1.0}
    assert "mine.py" in [plugin.name for plugin in result.environment.plugins]
    notes = place.read_text().splitlines()
    assert "purified" in notes
    assert notes.count("execute train") == 3
    # An edited plugin never meets its old results, nor old code its new ones.
    (recipe.parent / "mine.py").write_text(
        LOCAL.replace("PLACE", repr(str(place))).replace("t.drift.abs()", "-t.drift.abs()")
    )
    COMPUTED.clear()
    edited = defensekit.run(recipe, tmp_path / "w", [Watching()])
    assert edited.models["purified"].reset != result.models["purified"].reset
    assert edited.models["purified"].reset == defensekit.run(recipe, tmp_path / "fresh").models["purified"].reset
    assert "purified" in COMPUTED
    assert "suspect" not in COMPUTED


def test_an_exception_in_a_plugin_is_a_message_that_names_it(recipe: Path, warm: Path) -> None:
    (recipe.parent / "mine.py").write_text(LOCAL)
    shape(recipe, **SMALL, plugins=["mine.py"], defense__scorer={"name": "mine", "scale": 13.0}, defense__choose=None)
    with pytest.raises(DefenseKitError, match=r"plugin 'mine.py' .*: the scorer mine failed: ValueError: unlucky"):
        defensekit.run(recipe, warm)


@pytest.mark.slow
def test_a_run_killed_at_any_stage_goes_on_where_it_stopped(recipe: Path, tmp_path: Path) -> None:
    shape(recipe, data__train=48, training__epochs=1)
    expected = defensekit.run(recipe, tmp_path / "whole")
    store = tmp_path / "w/store/artifacts"
    command = [sys.executable, "-m", "defensekit", "run", str(recipe), "-w", str(tmp_path / "w")]
    kills = 0
    for wanted in (6, 14):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(store.glob("*/manifest.json")) if store.exists() else []) < wanted:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    result = defensekit.run(recipe, tmp_path / "w")
    for name, model in expected.models.items():
        assert result.models[name].metrics == model.metrics
    assert not list((tmp_path / "w/store/unfinished").iterdir())
