"""Executors with little in hand, and stages of a plugin that does what it is asked to."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from pydantic import PrivateAttr

import defensekit
from defensekit.components import Executor, Observer, Workers
from defensekit.host.discovery import load_plugins
from defensekit.host.registry import plain
from defensekit.pipeline.store import Store, key_of
from defensekit.result.schema import Result
from tests.conftest import shape

ODD = '''
import os, signal, time
from pathlib import Path

import torch
from defensekit.api import Dataset, DatasetSource, ModelStep, Row, UsageError, hookimpl


class Odd(DatasetSource):
    """Notes who loads it, then does what it is told to."""

    do: str
    place: Path

    def load(self):
        with self.place.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        times = len(self.place.read_text().splitlines())
        if self.do == "die" or self.do == "die once" and times == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while self.do == "wait" and not self.place.with_name("go").exists():
            time.sleep(0.05)
        if self.do == "greedy":
            torch.ones(6 * 2**30, dtype=torch.uint8)
        if self.do == "usage":
            raise UsageError("these rows are odd")
        if self.do == "break":
            raise ValueError("quite broken")
        return Dataset(("bad", "good"), [Row(i, f"row {i}", i % 2) for i in range(40)])

    def contents(self, say):
        return "odd"


class Pause(ModelStep):
    """Says how far it is and waits a while."""

    def train(self, model, context):
        context.report(1, 3)
        time.sleep(1.5)


@hookimpl
def defensekit_datasets():
    return {"odd": Odd}


@hookimpl
def defensekit_purifiers():
    return {"pause": Pause}
'''
MEMORY = 4  # GiB; what is greedy asks for 6
RAY = pytest.param("ray", marks=pytest.mark.slow)
SCORERS = ["diffusion", "magnitude", "random"]


def made(name: str, **parameters: Any) -> Executor:
    return cast(Executor, load_plugins().find("executor", name).model_validate(parameters))


def node() -> dict[str, Any]:
    return {"num_cpus": 1, "memory": 8 * 2**30, "include_dashboard": False}


def parameters(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Two workers, wherever they are."""
    if kind == "ray":
        return {"address": request.getfixturevalue("cluster").address, "memory": MEMORY}
    return {"workers": 2, "memory": MEMORY} if kind == "local" else {}


class Bench:
    """Stages of a plugin in a file, and a store to make them in."""

    def __init__(self, odd: Path, folder: Path) -> None:
        self.files = [odd]
        self.host = load_plugins(self.files)
        self.folder = folder
        self.store = Store(folder / "store")

    def stage(self, do: str, name: str = "one") -> dict[str, Any]:
        source = self.host.find("dataset", "odd").model_validate({"do": do, "place": self.folder / name})
        return {
            "kind": "data",
            "title": f"{name} rows",
            "params": {
                "roles": ["train"],
                "sizes": {"train": 4, "clean": 2, "dev": 2, "test": 2},
                "labels": None,
                "balance": False,
            },
            "components": {
                "source": plain(source, "odd") | {"plugin": str(self.host.plugin_of("dataset", "odd"))},
            },
            "inputs": {},
            "seed": 0,
            "plugin_files": [str(file) for file in self.files],
        }

    def execute(self, workers: Workers, stage: dict[str, Any]) -> None:
        workers.execute(stage, self.store.root, lambda done, total: None)

    def there(self, stage: dict[str, Any]) -> bool:
        """Whether the stage is in the store, whole."""
        return self.store.has(key_of(stage)) and bool(self.store.open(key_of(stage)))

    def pids(self, name: str = "one") -> list[int]:
        """Who loaded rows, in their order."""
        place = self.folder / name
        return [int(line) for line in place.read_text().splitlines()] if place.exists() else []


def eventually(check: Callable[[], object], seconds: float = 90) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


DRIVER = """
import json, sys
from pathlib import Path
from defensekit.host.discovery import load_plugins

name, parameters, stage, store = sys.argv[1:]
executor = load_plugins().find("executor", name).model_validate_json(parameters)
with executor.open() as workers:
    workers.execute(json.loads(stage), Path(store), print)
"""


def driver(bench: Bench, name: str, **parameters: Any) -> list[str]:
    """A command whose one stage waits for ever."""
    arguments = [name, json.dumps(parameters), json.dumps(bench.stage("wait")), str(bench.store.root)]
    return [sys.executable, "-c", DRIVER, *arguments]


def small(recipe: Path, **changes: Any) -> Path:
    changes = {"training__epochs": 1, "data__train": 48, "defense__choose": None} | changes
    return shape(recipe, **changes)


class Watching(Observer):
    """Remembers progress; does something when a stage begins."""

    _seen: list[tuple[str, int, int]] = PrivateAttr(default_factory=list)
    _then: dict[str, Callable[[], None]] = PrivateAttr(default_factory=dict)

    def stage_started(self, title: str) -> None:
        self._then.pop(title, lambda: None)()

    def progress(self, title: str, done: int, total: int) -> None:
        self._seen.append((title, done, total))


def numbers(result: Result) -> dict[str, Any]:
    """What was measured, to the last digit, and the digests of every artifact."""
    models = {name: model.metrics for name, model in result.models.items()}
    return {"models": models, "stages": {stage.title: stage.digest for stage in result.stages}}


def run(recipe: Path, folder: Path, observer: Observer, name: str, **parameters: Any) -> dict[str, Any]:
    copy = recipe.with_name(f"{folder.name}.yaml")
    copy.write_text(recipe.read_text())
    shape(copy, executor={"name": name, **parameters}, name="pico")
    return numbers(defensekit.run(copy, folder / "w", [observer]))
