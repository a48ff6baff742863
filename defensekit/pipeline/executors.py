"""The executors of the core: stages run in this process, or some of them beside it."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import Any

from defensekit.components import Executor, Workers
from defensekit.host.discovery import cached_plugins
from defensekit.models.untrusted import read_header
from defensekit.pipeline.store import Store
from defensekit.utils.memory import available

# Up to about as many stages of a run wait for nothing at the same time.
AT_ONCE = 4
_OMP = "OMP_NUM_THREADS"
# What a stage takes: in float32 its largest model in so many copies (gradients, the optimizer's state, the models that
# it is compared with), and the rest, most of it libraries.
COPIES, REST = 8, 2**30


def compute(stage: dict[str, Any], store: Path, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Compute a stage whose inputs are in the store, into the store: every executor ends in this call.

    Args:
        stage: the stage as plain data.
        store: the folder of the store.
        report: called with steps done and in all.

    Raises:
        DefenseKitError: the stage failed; names the plugin if one caused it.
    """
    from defensekit.pipeline import stages

    stages.compute(stage, store, report)


class _Here(Workers):
    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        compute(stage, store, report)


class InProcess(Executor):
    """Runs each stage in this process, one after the other, with all cores."""

    def open(self) -> AbstractContextManager[Workers]:
        """Workers for the length of a run."""
        return nullcontext(_Here())


class Auto(Executor):
    """Runs stages on this machine: several at once where it has cores for them, as far as its memory goes.

    On a CPU a stage computes with a quarter of the cores, but at least with one, whether others run beside it or not:
    the number of threads is part of the stages' keys. What nothing can run beside gets all cores. One stage at a time
    is computed in this process, others in worker processes. With a GPU, or on one core, it is as `in-process`.
    """

    def machine(self) -> dict[str, Any]:
        """Device type and number of threads of every stage; part of the stages' keys."""
        machine = super().machine()
        shared = machine["device"] == "cpu"
        return machine | {"threads": max(1, machine["threads"] // AT_ONCE)} if shared else machine

    def alone(self) -> dict[str, Any]:
        """All cores."""
        return super().machine()

    @contextmanager
    def open(self) -> Iterator[Workers]:
        """Workers for the length of a run."""
        threads, host = self.machine()["threads"], cached_plugins()
        others = super().machine()["threads"] // threads - 1
        if not others:
            yield _Here()
        elif "local" not in host.names("executor"):
            yield _Beside(None, threads)
        else:
            local = host.find(Executor, "local").model_validate({"workers": others, "threads": threads})
            with local.open() as workers:
                yield _Beside(workers, threads)


class _Beside(Workers):
    """This process, which computes the stages of the thread that opened it, and others beside it."""

    def __init__(self, others: Workers | None, threads: int) -> None:
        self.others = others
        self.threads = threads
        self.home = threading.get_ident()  # where Ctrl-C arrives
        self.here = threading.Lock()  # the random state is the process's
        self.state = threading.Condition()
        self.free = 0  # bytes of memory, before any stage began
        self.taken: list[int] = []  # by stages that are computed

    @property
    def slots(self) -> int:
        """This process, and the others."""
        return 1 + (self.others.slots if self.others else 0)

    def prepare(self) -> None:
        """Start another process."""
        if self.others:
            self.others.prepare()

    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        """Compute a stage here or beside, once there is memory for it."""
        with self._room(needed(stage, store) if self.others else 0):
            threads = stage.get("machine", {}).get("threads", self.threads)
            if self.others and threading.get_ident() != self.home and threads == self.threads:
                self.others.execute(stage, store, report)
            else:
                with self.here, _threads(threads):
                    compute(stage, store, report)

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Wait until there is memory, or nothing else is computed."""
        with self.state:
            self.state.wait_for(lambda: not self.taken or sum(self.taken) + size <= self.free)
            if not self.taken:
                self.free = available()
            self.taken.append(size)
        try:
            yield
        finally:
            with self.state:
                self.taken.remove(size)
                self.state.notify_all()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch, and the libraries under NumPy and SciPy, compute with so many threads within the block."""
    import torch
    from threadpoolctl import threadpool_limits

    before, variable = torch.get_num_threads(), os.environ.get(_OMP)
    torch.set_num_threads(number)
    os.environ[_OMP] = str(number)  # of libraries that are loaded within the block, as in a worker
    try:
        with threadpool_limits(number):
            yield
    finally:
        torch.set_num_threads(before)
        if variable is None:
            del os.environ[_OMP]
        else:
            os.environ[_OMP] = variable


def needed(stage: dict[str, Any], store: Path) -> int:
    """About how many bytes of memory computing a stage takes."""
    given = stage["inputs"].values()
    folders = [Path(one["path"]) for one in given if isinstance(one, dict)]
    artifacts = [Store(store).peek(one) for one in given if isinstance(one, str)]
    folders += [artifact.files for artifact in artifacts if artifact]
    return REST + 4 * COPIES * max(map(_weights, folders), default=0)


def _weights(folder: Path) -> int:
    headers = [read_header(path) for path in folder.glob("*.safetensors")]
    return sum(prod(entry.shape) for header in headers for entry in header.values())
