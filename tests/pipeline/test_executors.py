"""The default executor: how many threads a stage gets, and when one is computed beside another."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from threadpoolctl import threadpool_info

from defensekit.components import Workers
from defensekit.pipeline import executors
from defensekit.pipeline.executors import REST, Auto, InProcess, _Beside, needed
from defensekit.pipeline.store import Store, key_of
from defensekit.utils import memory


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets what torch takes for the number of cores, without starting its threads."""
    number = [1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: number[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda value: number.__setitem__(0, value))
    return lambda value: number.__setitem__(0, value)


@pytest.mark.parametrize(
    ("given", "threads", "slots"), [(1, 1, 1), (2, 1, 2), (4, 1, 4), (7, 1, 7), (8, 2, 4), (16, 4, 4)]
)
def test_threads_follow_from_the_cores_and_stages_fill_them(
    cores: Callable[[int], None], given: int, threads: int, slots: int
) -> None:
    cores(given)
    assert Auto().machine() == {"device": "cpu", "threads": threads}
    with Auto().open() as workers:
        assert workers.slots == slots
        assert Auto().machine()["threads"] == threads
    assert torch.get_num_threads() == given


def test_with_a_gpu_nothing_is_different(cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cores(8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Auto().machine() == InProcess().machine() == {"device": "cuda", "threads": 8}
    with Auto().open() as workers:
        assert workers.slots == 1


def test_without_the_plugin_of_processes_numbers_are_the_same(
    cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(2)
    monkeypatch.setenv("DEFENSEKIT_PLUGINS", "")
    computed = []
    monkeypatch.setattr(executors, "compute", lambda stage, *_: computed.append(torch.get_num_threads()))
    with Auto().open() as workers:
        assert (workers.slots, Auto().machine()["threads"]) == (1, 1)
        workers.execute({"inputs": {}}, Path(), lambda done, total: None)
    assert (computed, torch.get_num_threads()) == ([1], 2)


class Others(Workers):
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.began, self.goes_on = threading.Event(), threading.Event()

    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        self.began.set()
        assert self.goes_on.wait(60)


def test_a_stage_with_more_threads_is_computed_here_and_one_at_a_time(
    cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cores(2)
    assert (Auto().alone()["threads"], Auto().machine()["threads"]) == (2, 1)
    computed: list[tuple[int, bool]] = []
    workers = _Beside(Others(), 1)
    monkeypatch.setattr(
        executors, "compute", lambda *_: computed.append((torch.get_num_threads(), workers.here.locked()))
    )
    stage = {"inputs": {}, "machine": {"device": "cpu", "threads": 2}}
    beside = threading.Thread(target=workers.execute, args=(stage, tmp_path, lambda done, total: None))
    beside.start()
    beside.join(60)
    workers.execute({"inputs": {}}, tmp_path, lambda done, total: None)
    assert computed == [(2, True), (1, True)]
    assert not workers.others.began.is_set()  # type: ignore[union-attr]


@pytest.mark.parametrize("variable", [None, "7"])
def test_libraries_compute_with_the_threads_of_the_stage(
    cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None
) -> None:
    """As in a worker, whose numbers these must be: libraries that are there, and those that are loaded later."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before, seen = [pool["num_threads"] for pool in threadpool_info()], []

    def compute(*arguments: Any) -> None:
        seen.append((os.environ["OMP_NUM_THREADS"], {pool["num_threads"] for pool in threadpool_info()}))

    monkeypatch.setattr(executors, "compute", compute)
    for threads in (2, 1):
        stage = {"inputs": {}, "machine": {"device": "cpu", "threads": threads}}
        _Beside(None, 1).execute(stage, tmp_path, lambda done, total: None)
    assert seen == [("2", {2}), ("1", {1})]
    assert [pool["num_threads"] for pool in threadpool_info()] == before
    assert os.environ.get("OMP_NUM_THREADS") == variable


@pytest.mark.parametrize("enough", [True, False])
def test_what_does_not_fit_into_memory_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, enough: bool) -> None:
    monkeypatch.setattr(executors, "available", lambda: 2 * REST - (not enough))
    alone, others = threading.Event(), Others()
    workers = _Beside(others, 1)
    stage: dict[str, Any] = {"inputs": {}}
    report: Callable[[int, int], None] = lambda done, total: None  # noqa: E731
    helper = threading.Thread(target=workers.execute, args=(stage, tmp_path, report))

    def then() -> None:
        helper.start()
        assert others.began.wait(60 if enough else 0.3) is enough
        alone.set()

    second = threading.Thread(target=then)
    monkeypatch.setattr(executors, "compute", lambda *_: (second.start(), alone.wait(60)))
    workers.execute(stage, tmp_path, report)
    others.goes_on.set()
    for thread in (second, helper):
        thread.join(60)
    assert others.began.is_set()  # when nothing else was computed
    assert not workers.taken


def test_what_a_stage_needs_follows_from_its_largest_model(base: Path, tmp_path: Path) -> None:
    weights = sum(weight.numel() for weight in transformers.AutoModel.from_pretrained(base).parameters())
    made: dict[str, Any] = {"kind": "train", "title": "made", "components": {}, "inputs": {}}
    store = Store(tmp_path)
    with store.create(made) as draft:
        (draft.files / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    outside = {"base": {"path": str(base), "digest": ""}, "rows": "0" * 64}
    for inputs in (outside, {"model": key_of(made)}):
        assert needed({"inputs": inputs}, tmp_path) == REST + 4 * 8 * weights
    assert needed({"inputs": {}}, tmp_path) == REST


def test_memory_is_what_the_machine_and_a_container_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available() > 2**20  # half of this machine's
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    4000 kB\n")
    assert memory.available() == 4000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("500000\n")
    assert memory.available() == 4000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("active_file 7\ninactive_file 200000\n")
    assert memory.available() == 700_000
