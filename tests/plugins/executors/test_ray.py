"""Ray: nodes are lost, memory is short, artifacts travel, for real."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from defensekit.components import Observer
from defensekit.studies.loading import load_study
from defensekit.studies.rerun import read_result
from defensekit.studies.running import run_study
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.plugins.executors.helpers import (
    SCORERS,
    Bench,
    Watching,
    alive,
    driver,
    eventually,
    made,
    node,
    numbers,
    run,
)


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
    assert text.startswith(f"{place} has defensekit {version('defensekit')}, but the run uses 0.0.1; install")
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
        "DefenseKitError: one rows: its node ran out of memory 3 times; "
        "reserve more with `memory`, or use smaller batches"
    )
    assert not done.stdout  # of Ray's messages none is taken for a result


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
    assert len(models) == 7  # base, clean reference, suspect, from the base, fine-tuned only, random, purified
    again = tmp_path / "again"
    again.mkdir()
    started = Watching()
    assert run(recipe, again, started, "ray", address=cluster.address, artifacts=url) == wanted
    assert not started._seen  # nothing was computed


@pytest.mark.slow
def test_what_ray_can_not_do_is_said_at_once(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    greedy = made("ray", address=cluster.address, cpus=3, memory=2)
    text = r"no node has the resources of a stage, 3 CPU, 2 memory \(nodes have: .*1 CPU, 8 memory"
    with pytest.raises(UsageError, match=text), greedy.open():
        pass
    with pytest.raises(UsageError, match=r"no response from 127.0.0.1:1 "), made("ray", address="127.0.0.1:1").open():
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
