"""Studies that are killed, stopped, short of disk or two at once: nothing is lost."""

import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from defensekit.cli.main import app
from defensekit.components import Executor, Workers
from defensekit.pipeline.executors import compute
from defensekit.recipe.recipe import NamedComponent
from defensekit.studies.loading import load_study
from defensekit.studies.running import run_study
from defensekit.utils.errors import DefenseKitError
from tests.studies.helpers import _Counting, counted, results, study


@pytest.mark.slow
def test_two_who_want_the_same_stage_make_it_once(recipe: Path, tmp_path: Path) -> None:
    """Two studies with one workspace at the same time."""
    path = study(recipe, matrix={"defense.scorer": ["magnitude"]}, keep="models")
    both = [_Counting(), _Counting()]
    threads = [threading.Thread(target=run_study, args=(counted(path, workers, 1), tmp_path / "w")) for workers in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = both[0].computed + both[1].computed
    assert set(made.values()) == {1}
    assert len(list((tmp_path / "w/studies/small/results").glob("*.json"))) == 1


def filled(path: Path, workspace: Path, runs: int) -> None:
    """Run a study on a disk that has room for rows, and for no model."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        full = CliRunner().invoke(app, ["study", "run", str(path), "-w", str(workspace), "-q"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.exit_code == 1, full.output
    failures = [json.loads(file.read_text()) for file in (workspace / "studies/small/failed").glob("*.json")]
    assert len(failures) == runs
    assert all("File too large" in failure["error"] for failure in failures)


def disturbed(recipe: Path, tmp_path: Path, kills: int, executor: str, scorers: int = 2) -> None:
    """Fill the disk, and kill a study or its worker so many times: whenever it ends it is as an undisturbed one."""
    matrix = {"defense.scorer": ["magnitude", "random", "diffusion", "spectral", "inverse-fisher"][:scorers]}
    keys = {"name": "local", "workers": 1} if executor == "local" else executor
    path = study(recipe, executor=keys, matrix=matrix)
    expected = results(run_study(load_study(path, "executor=in-process"), tmp_path / "whole").folder)
    assert len(expected) == scorers
    command = [sys.executable, "-m", "defensekit", "study", "run", str(path), "-w", str(tmp_path / "w"), "-q"]
    rng, store, done = random.Random(0), tmp_path / "w/store/artifacts", 0

    def ends() -> None:
        last = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
        assert last.returncode == 0, last.stdout + last.stderr
        assert json.loads(last.stdout)["done"] == scorers
        assert results(tmp_path / "w/studies/small") == expected
        assert not list((tmp_path / "w/studies/small/failed").glob("*"))

    def begun() -> int:
        """How many stages were begun so far."""
        log = tmp_path / "w/studies/small/study.log"
        return log.read_text().count(": computing ") if log.exists() else 0

    if executor == "in-process":
        filled(path, tmp_path / "w", scorers)
    while done < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wanted = begun() + rng.randint(0, 4)
        while process.poll() is None and begun() < wanted:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        if process.poll() is not None:
            ends()
            shutil.rmtree(tmp_path / "w")  # there was nothing left to do: begin again
            continue
        victims = [process.pid]
        if executor == "local" and rng.random() < 0.5:
            listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
            victims = [int(pid) for pid in listed.stdout.split()][:1] or victims
        os.kill(victims[0], signal.SIGKILL)
        if victims != [process.pid]:
            time.sleep(0.2)
            process.kill()
        done += process.wait() == -signal.SIGKILL  # or it was over at that moment
        if rng.random() < 0.3 and (files := sorted((tmp_path / "w/studies/small/results").glob("*.json"))):
            files[0].write_text("{")  # and a disk that loses the end of a file
        if rng.random() < 0.3 and (manifests := sorted(store.glob("*/manifest.json"))):
            manifests[0].write_text("{")
    ends()


@pytest.mark.slow
@pytest.mark.usefixtures("own_steps")
def test_a_study_killed_and_on_a_full_disk_ends_as_an_undisturbed_one(recipe: Path, tmp_path: Path) -> None:
    disturbed(recipe, tmp_path, 1, "in-process")


@pytest.mark.slow
@pytest.mark.usefixtures("own_steps")
def test_a_study_killed_a_hundred_times_ends_as_an_undisturbed_one(recipe: Path, tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / str(i)).mkdir()
        disturbed(recipe, tmp_path / str(i), 10, ("in-process", "local")[i % 2], scorers=5)


def test_a_study_that_is_stopped_writes_down_no_failures(recipe: Path, tmp_path: Path) -> None:
    """Ctrl-C meets the main thread while it waits for another one's stage."""
    path = study(recipe, matrix={"defense.scorer": ["magnitude", "random"]})
    goes_on, pressed = threading.Event(), threading.Timer(3, os.kill, [os.getpid(), signal.SIGINT])

    class Blocked(Workers):
        slots = 2

        def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
            if threading.current_thread() is not threading.main_thread():
                pressed.start()
                goes_on.wait(60)
                raise DefenseKitError("the workers are gone")
            compute(stage, store, report)

    class Blocking(Executor):
        @contextmanager
        def open(self) -> Iterator[Workers]:
            yield Blocked()

    before = set(threading.enumerate())
    called_back = gc.callbacks.copy()
    gc.callbacks.clear()  # Ctrl-C while hypothesis is called back by a collection is swallowed there
    try:
        with pytest.raises(KeyboardInterrupt):
            run_study(replace(load_study(path), executor=NamedComponent("blocking", Blocking())), tmp_path / "w")
    finally:
        gc.callbacks.extend(called_back)
        goes_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert not (tmp_path / "w/studies/small/failed").exists()
