"""Workers: the same suite for every executor. They are killed, memory is short, plugins are missing, for real."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from defensekit.components import Workers
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.plugins.executors.helpers import RAY, Bench, driver, eventually, made, parameters


@pytest.fixture(scope="class", params=["in-process", "local", RAY])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """The workers of every executor."""
    with made(request.param, **parameters(request.param, request)).open() as workers:
        yield workers


# For what needs processes of their own.
apart = pytest.mark.parametrize("workers", ["local", RAY], indirect=True)


class TestWorkers:
    """What every executor's workers do."""

    def test_a_stage_is_made(self, workers: Workers, bench: Bench) -> None:
        stage = bench.stage("nothing")
        bench.execute(workers, stage)
        assert bench.there(stage)
        assert len(bench.pids()) == 1

    def test_a_path_starts_where_the_driver_is(
        self, workers: Workers, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(bench.folder)
        workers.execute(bench.stage("nothing"), Path("store"), lambda done, total: None)
        assert bench.there(bench.stage("nothing"))

    @pytest.mark.parametrize(
        ("do", "kind", "text"),
        [
            ("usage", UsageError, r"these rows are odd"),
            (
                "break",
                DefenseKitError,
                r"plugin .odd.py. .*: the dataset Odd failed: ValueError: quite broken \(odd.py:\d+\) .*",
            ),
        ],
    )
    def test_errors_arrive_as_they_were(
        self, workers: Workers, bench: Bench, do: str, kind: type[DefenseKitError], text: str
    ) -> None:
        with pytest.raises(DefenseKitError, match=rf"^{text}$") as caught:
            bench.execute(workers, bench.stage(do))
        assert type(caught.value) is kind
        stage = bench.stage("nothing", "next")  # nobody is the worse for it
        bench.execute(workers, stage)
        assert bench.there(stage)

    def test_a_plugin_that_a_worker_lacks_is_named(self, workers: Workers, bench: Bench) -> None:
        stage = bench.stage("nothing")
        stage["components"]["source"] |= {"name": "gone", "plugin": "plugin 'extra' (extra-rows 2.0)"}
        with pytest.raises(DefenseKitError) as caught:
            bench.execute(workers, stage)
        place = os.uname().nodename
        start = f"the dataset 'gone' needs plugin 'extra' (extra-rows 2.0) on {place}; install it there"
        assert str(caught.value).startswith(start)
        assert "\n" not in str(caught.value)
        stage = bench.stage("nothing") | {"plugin_files": ["/nowhere/odd.py"]}
        with pytest.raises(
            DefenseKitError, match=rf"no file /nowhere/odd.py on {place}; put it where every node has it"
        ):
            bench.execute(workers, stage)

    def test_a_plugin_that_a_worker_has_in_another_version_is_named(self, workers: Workers, bench: Bench) -> None:
        stage = bench.stage("nothing")
        stage["components"]["source"] |= {"source": "0" * 64, "plugin": "plugin 'odd.py' (odd-rows 1.0)"}
        with pytest.raises(DefenseKitError) as caught:
            bench.execute(workers, stage)
        text = str(caught.value)
        assert (
            f"the source of plugin 'odd.py' (odd-rows 1.0) on {os.uname().nodename} is not what the run began" in text
        )
        assert f"(plugin 'odd.py' ({bench.files[0].parent}) is there now)" in text
        assert "install the same everywhere" in text
        assert "\n" not in text

    @apart
    def test_stages_run_at_once_in_workers_that_stay(self, workers: Workers, bench: Bench) -> None:
        assert workers.slots == 2
        stages = [bench.stage("wait", "one"), bench.stage("wait", "two")]
        with ThreadPoolExecutor(2) as pool:
            going = [pool.submit(bench.execute, workers, stage) for stage in stages]
            eventually(lambda: bench.pids("one") and bench.pids("two"))
            (bench.folder / "go").touch()
            for future in going:
                future.result()
        assert all(map(bench.there, stages))
        first = {*bench.pids("one"), *bench.pids("two")}
        assert len(first) == 2
        for i in range(4):
            bench.execute(workers, bench.stage("nothing", f"more {i}"))
            assert bench.pids(f"more {i}")[0] in first

    @apart
    def test_a_worker_that_is_killed_once_is_replaced(self, workers: Workers, bench: Bench) -> None:
        stage = bench.stage("die once")
        bench.execute(workers, stage)
        assert bench.there(stage)
        assert len(set(bench.pids())) == 2

    @apart
    @pytest.mark.slow
    def test_a_stage_that_kills_every_worker_is_an_error(self, workers: Workers, bench: Bench) -> None:
        with pytest.raises(DefenseKitError, match=r"^one rows: .*(2|3) times") as caught:
            bench.execute(workers, bench.stage("die"))
        assert "\n" not in str(caught.value)
        assert len(set(bench.pids())) in (2, 3)
        stage = bench.stage("nothing", "next")
        bench.execute(workers, stage)
        assert bench.there(stage)

    @apart
    @pytest.mark.skipif(sys.platform != "linux", reason="Linux alone keeps to a process's bound")
    def test_a_stage_that_takes_too_much_memory_is_an_error(self, workers: Workers, bench: Bench) -> None:
        with pytest.raises(DefenseKitError, match=r"^one rows: out of memory; smaller .* \(.*allocate") as caught:
            bench.execute(workers, bench.stage("greedy"))
        assert "\n" not in str(caught.value)
        assert len(bench.pids()) == 1
        stage = bench.stage("nothing", "next")
        bench.execute(workers, stage)
        assert bench.there(stage)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
@pytest.mark.parametrize("kind", ["local", RAY, pytest.param("ray's cluster", marks=pytest.mark.slow)])
def test_nothing_outlives_its_driver(
    request: pytest.FixtureRequest, bench: Bench, kind: str, how: signal.Signals
) -> None:
    if kind == "ray":
        pytest.importorskip("ray")
    there = {"address": request.getfixturevalue("cluster").address} if kind == "ray's cluster" else {}
    command = driver(bench, kind.partition("'")[0], workers=1, **there)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        eventually(bench.pids)
        everybody = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(bench.pids()[0])]
        # A terminal's Ctrl-C goes to everybody in the foreground, SIGKILL to one.
        (os.killpg if how is signal.SIGINT else os.kill)(process.pid, how)
        process.wait(60)
        _, alive = psutil.wait_procs(everybody, 150)  # Ray's own helpers take their time
        assert not alive
    finally:
        process.kill()
    assert not bench.there(bench.stage("wait"))


def test_what_stages_compute_with_is_what_they_are_given() -> None:
    assert made("local", workers=3, threads=2).machine()["threads"] == 2
    assert made("ray", workers=3, cpus=2).machine() == {"device": "cpu", "threads": 2}
    assert made("ray", gpus=0.5).machine() == {"device": "cuda", "threads": 1}
