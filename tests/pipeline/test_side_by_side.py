"""Stages of one run side by side: what comes out is what comes out of one after the other."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import defensekit
from defensekit.result.schema import Result
from defensekit.utils.errors import DefenseKitError
from tests.conftest import shape
from tests.pipeline.helpers import Two, timeless, workspace_without

Finished = tuple[Path, Path, Result]
TRIALS = ("trial fraction 0.25", "trial fraction 0.5")
ADAPTIVE = """
from defensekit.api import Choice, Rule, hookimpl

class Careful(Rule):
    def propose(self, seen):
        return (0.0, 0.25, None)[len(seen)]

    def choose(self, seen, suspect):
        return Choice(0.25, "it was careful")

@hookimpl
def defensekit_rules():
    return {"careful": Careful}
"""


def test_what_comes_out_is_the_same(finished: Finished, tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=300)
    workers = Two(lambda title: both.wait() and None if title in TRIALS else None)  # one does not wait for the other
    workspace = workspace_without(finished, tmp_path / "w", "statistics", "trial fraction 0.", "purified")
    result = defensekit.run(workers.take(finished[0]), workspace)
    assert len(set(workers.begun.values())) == 2
    assert timeless(result.model_dump(mode="json")) == timeless(finished[2].model_dump(mode="json"))
    assert {stage.title for stage in result.stages if not stage.reused} == set(workers.begun)


def test_a_rule_that_proposes_by_what_it_saw_has_nothing_else_tried(
    finished: Finished, recipe: Path, tmp_path: Path
) -> None:
    (recipe.parent / "careful.py").write_text(ADAPTIVE)
    shape(recipe, plugins=["careful.py"], defense__choose={"rule": "careful", "values": [0.25, 0.5]})
    workers = Two()
    workspace = workspace_without(finished, tmp_path / "w", TRIALS[1], "random", "purified")
    result = defensekit.run(workers.take(recipe), workspace)
    assert [trial.value for trial in result.curve] == [0.0, 0.25]
    assert "purified" in workers.begun
    assert not any(title.startswith(TRIALS[1]) for title in workers.begun)


def test_the_error_is_the_first_that_the_run_meets_and_what_was_begun_is_kept(
    finished: Finished, tmp_path: Path
) -> None:
    failed = threading.Event()

    def before(title: str) -> None:
        if title == TRIALS[1]:  # the later one fails first
            failed.set()
            raise DefenseKitError("the second trial failed")
        if title == TRIALS[0]:
            assert failed.wait(300)

    workers = Two(before)
    workspace = workspace_without(finished, tmp_path / "w", *TRIALS)
    with pytest.raises(DefenseKitError, match=r"^the second trial failed$"):
        defensekit.run(workers.take(finished[0]), workspace)
    assert f"{TRIALS[0]}: answers to triggered rows" in workers.begun  # the run asked for it before
    assert not any(title.startswith(TRIALS[1] + ":") for title in workers.begun)
    again = Two()
    result = defensekit.run(again.take(finished[0]), workspace)
    assert not any(title.startswith(TRIALS[0]) for title in again.begun)
    assert timeless(result.model_dump(mode="json")) == timeless(finished[2].model_dump(mode="json"))


def test_ctrl_c_does_not_wait_for_what_is_beside(finished: Finished, tmp_path: Path) -> None:
    goes_on, main = threading.Event(), threading.get_ident()

    def before(title: str) -> None:
        if title in TRIALS and threading.get_ident() != main:
            threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
            goes_on.wait(300)
            raise DefenseKitError("the worker was ended")

    running = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        defensekit.run(Two(before).take(finished[0]), workspace_without(finished, tmp_path / "w", *TRIALS))
    goes_on.set()
    for thread in set(threading.enumerate()) - running:
        if "help_out" in thread.name:  # others may be a library's, which idle as long as the interrupt is remembered
            thread.join(60)
            assert not thread.is_alive()


def command(recipe: Path, workspace: Path) -> list[str]:
    return [sys.executable, "-m", "defensekit", "run", str(recipe), "-w", str(workspace), "--json"]


def on_cores(count: int) -> dict[str, str]:
    """The environment of a process that has so many cores, as torch sees it: the lower of the two counts."""
    return os.environ | {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}


@pytest.mark.slow
@pytest.mark.usefixtures("own_steps")
def test_processes_beside_this_one_give_the_same(recipe: Path, tmp_path: Path) -> None:
    def found(folder: str, cores: int) -> Any:
        done = subprocess.run(
            command(recipe, tmp_path / folder), env=on_cores(cores), capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    alone, beside = found("one", 1), found("two", 2)
    assert timeless(beside) == timeless(alone)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux says who waits for whom")
def test_ctrl_c_ends_every_process_and_the_same_command_goes_on(recipe: Path, tmp_path: Path) -> None:
    shape(recipe, training__epochs=200)
    process = subprocess.Popen(command(recipe, tmp_path / "w"), env=on_cores(2), stderr=subprocess.PIPE, text=True)
    assert process.stderr
    folders = tmp_path / "w/store/unfinished"
    while process.poll() is None and len({folder.suffix for folder in folders.glob("*")}) < 2:  # two are at work
        time.sleep(0.05)
    everybody = psutil.Process(process.pid).children(recursive=True)
    assert everybody
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    text = process.stderr.read()
    assert process.wait(60) == 130
    assert time.monotonic() - began < 30
    assert text.endswith("stopped; the same command resumes where it stopped\n")
    assert not psutil.wait_procs(everybody, 10)[1]
