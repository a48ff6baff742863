"""Executors: the same suite for every one. Workers are killed, nodes lost, memory short, plugins missing, for real."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
import yaml
from pydantic import PrivateAttr

import defensekit
from defensekit.components import Executor, Observer, Workers
from defensekit.host.discovery import load_plugins
from defensekit.host.registry import plain
from defensekit.pipeline.store import Store, key_of
from defensekit.result.schema import Result
from defensekit.studies.loading import load_study
from defensekit.studies.rerun import read_result
from defensekit.studies.running import run_study
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.conftest import RECIPE, make_sentences, write_table
from tests.test_pipeline import shape

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


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a plugin that does what it is told to."""
    file = tmp_path_factory.mktemp("plugin") / "odd.py"
    file.write_text(ODD)
    return file


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine's loopback, a core each; the head has none, and the driver is there."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'defensekit[ray]')")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args=node() | {"num_cpus": 0})
    for _ in range(2):
        found.add_node(**node())
    yield found
    found.shutdown()


def node() -> dict[str, Any]:
    return {"num_cpus": 1, "memory": 8 * 2**30, "include_dashboard": False}


def parameters(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Two workers, wherever they are."""
    if kind == "ray":
        return {"address": request.getfixturevalue("cluster").address, "memory": MEMORY}
    return {"workers": 2, "memory": MEMORY} if kind == "local" else {}


@pytest.fixture(scope="class", params=["in-process", "local", RAY])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """The workers of every executor."""
    with made(request.param, **parameters(request.param, request)).open() as workers:
        yield workers


# For what needs processes of their own.
apart = pytest.mark.parametrize("workers", ["local", RAY], indirect=True)


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
                "role": "train",
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


@pytest.fixture
def bench(odd: Path, tmp_path: Path) -> Bench:
    return Bench(odd, tmp_path)


def eventually(check: Callable[[], object], seconds: float = 90) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


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


def test_a_node_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from defensekit_executors.ray import _by_value, on_node

    cloudpickle = pytest.importorskip("cloudpickle")
    place = os.uname().nodename
    code = "import pickle, sys; sys.modules['defensekit_executors'] = None; f = pickle.load(sys.stdin.buffer)"
    command = [sys.executable, "-c", code + "; print(f('{}', None, 0))"]
    done = subprocess.run(command, input=cloudpickle.dumps(_by_value()), capture_output=True, check=True)
    what, text = json.loads(done.stdout)
    assert what == "error"
    assert text.startswith(f"{place} lacks the package defensekit (")

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")  # put back in the end
    asked = {"stage": {"title": "rows"}, "store": "", "threads": 1, "memory": None, "gpus": 0, "version": "0.0.1"}
    [_, text] = json.loads(on_node(json.dumps(asked), None, 0))
    assert text.startswith(f"{place} has defensekit {version('defensekit')}, where the run began it is 0.0.1; install")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked |= {"gpus": 1, "version": version("defensekit")}
    [_, text] = json.loads(on_node(json.dumps(asked), None, 0))
    assert text == f"{place} has a GPU that its torch can't use; run there: defensekit doctor"


@pytest.mark.slow
def test_what_ray_kills_for_memory_is_not_tried_for_ever(bench: Bench) -> None:
    pytest.importorskip("ray")
    limits = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "200"}
    command = driver(bench, "ray", workers=1)
    done = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True, timeout=300)
    assert done.stderr.splitlines()[-1].endswith(
        "DefenseKitError: one rows: its node ran out of memory 3 times; `memory` makes room, smaller batches take less"
    )
    assert not done.stdout  # of Ray's messages none is taken for a result


EXTRA = """
from defensekit.api import Dataset, DatasetSource, Row, hookimpl


class Extra(DatasetSource):
    def load(self):
        return Dataset(("negative", "positive"), [Row(i, f"row {i}", i % 2) for i in range(40)])

    def contents(self, say):
        return "extra"


@hookimpl
def defensekit_datasets():
    return {"extra": Extra}
"""


def test_a_plugin_that_is_on_the_driver_alone_is_named(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In earnest: a distribution that this process can import, and its workers can't, or have in another version."""
    for number, site in enumerate(("here", "there"), 1):
        (tmp_path / site).mkdir()
        (tmp_path / site / "extra_rows.py").write_text(f"VERSION = {number}\n{EXTRA}")
        info = tmp_path / site / f"extra_rows-{number}.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: extra-rows\nVersion: {number}.0\n")
        (info / "entry_points.txt").write_text("[defensekit]\nextra = extra_rows\n")
    monkeypatch.syspath_prepend(tmp_path / "here")
    small(recipe, executor={"name": "local", "workers": 1})
    shape(recipe, data__name="extra", data__train=8, data__clean=2, data__dev=2, data__test=4)
    named = rf"plugin 'extra' \(extra-rows 1.0\) on {os.uname().nodename}"
    with pytest.raises(DefenseKitError, match=rf"the dataset 'extra' needs {named}; install it there"):
        defensekit.run(recipe, tmp_path / "w")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "there"))
    there = r"plugin 'extra' \(extra-rows 2.0\)"
    with pytest.raises(DefenseKitError, match=rf"source of {named} is not .*\({there} is there now\)"):
        defensekit.run(recipe, tmp_path / "w")


# -- whole runs ----------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def expected(base: Path, odd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A recipe, and what it comes to in this process."""
    folder = tmp_path_factory.mktemp("expected")
    write_table(folder / "rows.csv", make_sentences(400))
    recipe = folder / "pico.yaml"
    recipe.write_text(RECIPE.format(base=base))
    small(recipe, plugins=[str(odd)], defense__purifier=["reset", "pause"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return recipe, numbers(defensekit.run(recipe, folder / "w"))
    finally:
        torch.set_num_threads(threads)


def run(recipe: Path, folder: Path, observer: Observer, name: str, **parameters: Any) -> dict[str, Any]:
    copy = recipe.with_name(f"{folder.name}.yaml")
    copy.write_text(recipe.read_text())
    shape(copy, executor={"name": name, **parameters}, name="pico")
    return numbers(defensekit.run(copy, folder / "w", [observer]))


@pytest.mark.parametrize("kind", ["local", RAY])
@pytest.mark.slow
def test_the_numbers_are_those_of_one_process(
    request: pytest.FixtureRequest, expected: tuple[Path, dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    recipe, wanted = expected
    watching = Watching()
    found = run(recipe, tmp_path, watching, kind, **parameters(kind, request))
    assert found == wanted
    assert ("purified", 1, 3) in watching._seen


@pytest.mark.slow
def test_a_node_is_lost_in_the_midst_of_a_study(
    cluster: Any, expected: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """First one of the two nodes goes, then the other one, and each time there is something being computed."""
    study = expected[0].with_name("study.yaml")
    study.write_text(yaml.dump({"name": "pico", "recipe": "pico.yaml", "matrix": {"defense.scorer": SCORERS}}))

    def found(watching: Sequence[Observer], **executor: Any) -> list[dict[str, Any]]:
        loaded = load_study(study, [f"executor={json.dumps(executor)}"])
        outcome = run_study(loaded, tmp_path / executor["name"], watching)
        assert (outcome.done, outcome.failed) == (len(SCORERS), {})
        return [numbers(read_result(path)) for path in sorted((outcome.folder / "results").glob("*.json"))]

    first, second = cluster.worker_nodes
    began = {"suspect": threading.Event(), "purified": threading.Event()}
    watching = Watching()
    watching._then |= {title: event.set for title, event in began.items()}
    with ThreadPoolExecutor(1) as pool:  # a node is added by the main thread or not at all
        study_on_ray = pool.submit(found, [watching], name="ray", address=cluster.address)
        try:
            for lost, event in ((first, began["suspect"]), (second, began["purified"])):
                assert event.wait(300)
                time.sleep(1)
                cluster.remove_node(lost, allow_graceful=False)
                cluster.add_node(**node())
        finally:
            on_ray = study_on_ray.result()
    assert not {first, second} & cluster.worker_nodes
    assert on_ray == found([], name="local", workers=1, threads=1)


@pytest.mark.slow
def test_stages_of_a_lost_node_are_made_by_another(cluster: Any, bench: Bench) -> None:
    node_lost = cluster.add_node(**node())
    stages = [bench.stage("wait", str(i)) for i in range(3)]
    with ExitStack() as stack:
        workers = stack.enter_context(made("ray", address=cluster.address).open())
        assert workers.slots == 3
        pool = stack.enter_context(ThreadPoolExecutor(3))
        going = [pool.submit(bench.execute, workers, stage) for stage in stages]
        try:
            eventually(lambda: all(bench.pids(str(i)) for i in range(3)))
            cluster.remove_node(node_lost, allow_graceful=False)
            eventually(lambda: not all(alive(bench.pids(str(i))[0]) for i in range(3)))
        finally:
            (bench.folder / "go").touch()
        for future in going:
            future.result()
    assert all(map(bench.there, stages))
    assert sorted(len(bench.pids(str(i))) for i in range(3)) == [1, 1, 2]


@pytest.mark.slow
def test_artifacts_travel_through_a_url(cluster: Any, expected: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    recipe, wanted = expected
    url = (tmp_path / "mirror").as_uri()
    found = run(recipe, tmp_path, Watching(), "ray", address=cluster.address, artifacts=url)
    assert found == wanted
    models = list((tmp_path / "mirror").rglob("model.safetensors"))
    assert len(models) == 6  # base, clean reference, suspect, fine-tuned only, random, purified
    again = tmp_path / "again"
    again.mkdir()
    started = Watching()
    assert run(recipe, again, started, "ray", address=cluster.address, artifacts=url) == wanted
    assert not started._seen  # nothing was computed


@pytest.mark.slow
def test_what_ray_can_not_do_is_said_at_once(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    greedy = made("ray", address=cluster.address, cpus=3, memory=2)
    text = r"no node has room for a stage, which wants 3 CPU, 2 memory \(there is: .*1 CPU, 8 memory"
    with pytest.raises(UsageError, match=text), greedy.open():
        pass
    with pytest.raises(UsageError, match=r"nobody answers at 127.0.0.1:1 "), made("ray", address="127.0.0.1:1").open():
        pass
    with (
        pytest.raises(DefenseKitError, match="can't reach a cluster at nonsense"),
        made("ray", address="nonsense").open(),
    ):
        pass
    with pytest.raises(UsageError, match=r"'odd://place'.*odd"), made("ray", artifacts="odd://place").open():
        pass
    assert not ray.is_initialized()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs Ray .*pip install 'defensekit\[ray\]'"), made("ray").open():
        pass
