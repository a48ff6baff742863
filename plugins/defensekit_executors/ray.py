"""Stages on a Ray cluster: one that already exists, or one that is started here and ends with the run.

Ray schedules the stages, reuses its workers, and retries stages of dead workers or lost nodes. Stages and their
outcomes are sent as JSON; artifacts go through the store's folder or an fsspec URL, never through Ray.
"""

import json
import os
import platform
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from defensekit.api import DefenseKitError, Executor, Field, RemoteStore, UsageError, Workers, compute
from defensekit_executors.work import Report, answer, bound, check, cores, variables

RETRIES = 2  # after a worker died or a node was lost
POLL = 0.5  # seconds between two looks at a stage's progress
# Read when Ray is imported or connects.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_task_oom_retries": str(RETRIES),  # limits retries after its memory monitor kills a task
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # suppresses its messages among our results
    "RAY_SCHEDULER_EVENTS": "0",
}


class Ray(Executor):
    """Runs stages on a Ray cluster, each with the cores, the memory and the share of a GPU that it asks for."""

    address: str | None = Field(None, description="of a cluster, as in 10.0.0.1:6379 (none: one is started here)")
    workers: int | None = Field(None, ge=1, description="stages at once (as many as fit on the cluster)")
    cpus: int = Field(1, ge=1, description="cores of each stage, and the threads that it computes with")
    gpus: float = Field(0, ge=0, le=1, description="GPU of each stage, or the part of one that it shares")
    memory: float | None = Field(
        None, gt=0, description="GiB that each may take and that are reserved for it (no limit)"
    )
    artifacts: str | None = Field(
        None, description="fsspec URL that artifacts are copied through (none: every node sees the store's folder)"
    )

    def machine(self) -> dict[str, Any]:
        return {"device": "cuda" if self.gpus else "cpu", "threads": self.cpus}

    @contextmanager
    def open(self) -> Iterator[Workers]:
        mirror = RemoteStore(self.artifacts) if self.artifacts else None
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise UsageError(f"the executor ray needs Ray ({error}); pip install 'defensekit[ray]'") from error
        if ray.is_initialized():
            raise UsageError("the executor ray connects by itself, and this process is connected; call ray.shutdown()")
        if self.address:
            _knock(self.address)
        here = {"num_cpus": self.workers * self.cpus if self.workers else cores(), "object_store_memory": 100 * 2**20}
        try:
            ray.init(
                self.address or "local",
                **({} if self.address else here | {"include_dashboard": False}),
                log_to_driver=False,
                logging_level="ERROR",
            )
        except Exception as error:
            what = f"reach a cluster at {self.address}" if self.address else "start a cluster here"
            raise DefenseKitError(f"the executor ray can't {what} ({_line(error)})") from error
        workers = None
        try:
            workers = _RayWorkers(self, mirror)
            yield workers
        finally:
            if workers:
                workers.close()
            ray.shutdown()

    @property
    def wanted(self) -> dict[str, float]:
        """The resources of each stage, by Ray's names."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": int((self.memory or 0) * 2**30)}
        return {name: value for name, value in wanted.items() if value}


class _RayWorkers(Workers):
    """Calls of a Ray task; Ray decides how many run at a time."""

    def __init__(self, settings: Ray, mirror: RemoteStore | None) -> None:
        import ray

        self.settings = settings
        self.mirror = mirror
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.capacity = settings.workers or sum(_capacity(node, settings.wanted) for node in nodes)
        if not self.capacity:
            wanted = ", ".join(f"{value:g} {name}" for name, value in _readable(settings.wanted).items())
            there = "; ".join(
                ", ".join(f"{_readable(node).get(name, 0):g} {name}" for name in settings.wanted) for node in nodes
            )
            raise UsageError(f"the executor ray: no node has the resources of a stage, {wanted} (nodes have: {there})")
        # A process can't switch to another GPU. By default Ray ends GPU workers after each stage.
        several = settings.gpus and any(node.get("GPU", 0) > 1 for node in nodes)
        resources = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "memory": settings.wanted.get("memory")}
        self.task = ray.remote(**resources, max_retries=RETRIES, max_calls=1 if several else 0)(_by_value())
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        self.board = ray.remote(num_cpus=0, scheduling_strategy=strategy)(_Board).remote()
        self.numbers = count()
        self.closed = False
        self.going = 0
        self.state = threading.Condition()
        self.here = threading.Lock()

    @property
    def slots(self) -> int:
        return self.capacity

    def execute(self, stage: dict[str, Any], store: Path, report: Report) -> None:
        with self.state:
            self.going += 1
        try:
            if self.mirror is None:
                self._run(stage, {"store": str(store.absolute())}, report)
            elif "machine" not in stage:
                # Rows are read here, where their files are; one stage after the other, since plugins may use a global
                # random state.
                with self.here:
                    compute(stage, store, report)
            elif not self.mirror.pull(stage, store):
                self.mirror.push(stage, store)
                self._run(stage, {"url": self.mirror.url}, report)
                if not self.mirror.pull(stage, store):
                    raise DefenseKitError(f"{stage['title']}: it was computed, but is not at {self.mirror.url}")
        finally:
            with self.state:
                self.going -= 1
                self.state.notify_all()

    def _run(self, stage: dict[str, Any], location: dict[str, str], report: Report) -> None:
        import ray

        number, seen = next(self.numbers), None
        bounds = {"threads": self.settings.cpus, "memory": self.settings.memory, "gpus": self.settings.gpus}
        request = {"stage": stage, **location, **bounds, "version": version("defensekit")}
        try:
            reference = self.task.remote(json.dumps(request), self.board, number)
            while not ray.wait([reference], timeout=POLL)[0]:
                if self.closed:
                    raise DefenseKitError(f"{stage['title']}: the run ended while it was computed")
                with suppress(ray.exceptions.RayError):  # without the board no progress is reported
                    progress = ray.get(self.board.read.remote(number), timeout=POLL)
                    if progress != seen:
                        seen = progress
                        report(*progress)
            answered = json.loads(ray.get(reference))
        except ray.exceptions.RayError as error:
            raise DefenseKitError(f"{stage['title']}: {_ended(error)}") from error
        check(*answered)

    def close(self) -> None:
        """Make all calls return; running stages end with the connection."""
        with self.state:
            self.closed = True
            self.state.wait_for(lambda: not self.going, timeout=10 * POLL)


class _Board:
    """An actor that collects the workers' progress."""

    def __init__(self) -> None:
        self.progress: dict[int, tuple[int, int]] = {}

    def write(self, number: int, done: int, total: int) -> None:
        self.progress[number] = (done, total)

    def read(self, number: int) -> tuple[int, int] | None:
        return self.progress.get(number)


def _by_value() -> Any:
    """The task, pickled by value, so that a node without our packages can report that."""

    def stage_on_node(request: str, board: Any, number: int) -> str:
        import json
        import platform

        try:
            from defensekit_executors.ray import on_node
        except ImportError as error:
            return json.dumps(["error", f"{platform.node()} lacks the package defensekit ({error}); install it there"])
        return on_node(request, board, number)

    return stage_on_node


def on_node(request: str, board: Any, number: int) -> str:
    """Compute a stage given as JSON; returns the outcome as JSON."""
    task = json.loads(request)
    stage, node = task["stage"], platform.node()
    os.environ.update(variables(task["threads"]))
    if not task["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if (ours := version("defensekit")) != task["version"]:
        text = f"{node} has defensekit {ours}, but the run uses {task['version']}; install the same version everywhere"
        return json.dumps(["error", text])
    import torch

    if task["gpus"] and not torch.cuda.is_available():
        return json.dumps(["error", f"{node} has a GPU that its torch can't use; run there: defensekit doctor"])
    torch.set_num_threads(task["threads"])
    if task["memory"]:
        bound(task["memory"])
    work = (
        partial(RemoteStore(task["url"]).compute, stage)
        if "url" in task
        else partial(compute, stage, Path(task["store"]))
    )
    return json.dumps(answer(stage["title"], work, partial(board.write.remote, number)))


def _knock(address: str) -> None:
    """Raise UsageError where HOST:PORT does not respond: Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UsageError(f"the executor ray: no response from {address} ({error})") from error


def _capacity(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """How many stages fit on a node."""
    return int(min(node.get(name, 0) // value for name, value in wanted.items()))


def _readable(resources: Mapping[str, float]) -> dict[str, float]:
    """Resources with the memory in GiB."""
    readable = dict(resources)
    if "memory" in readable:
        readable["memory"] = round(readable["memory"] / 2**30, 1)
    return readable


def _ended(error: Exception) -> str:
    """One line for a task that Ray could not finish."""
    from ray import exceptions

    match error:
        case exceptions.OutOfMemoryError():
            return f"its node ran out of memory {RETRIES + 1} times; reserve more with `memory`, or use smaller batches"
        case exceptions.WorkerCrashedError() | exceptions.NodeDiedError():
            return f"its worker died, or the node was lost, {RETRIES + 1} times; memory may have run out"
    return f"Ray: {_line(error)}"


def _line(error: Exception) -> str:
    """The most informative line of a message: the last one of a traceback, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0]
