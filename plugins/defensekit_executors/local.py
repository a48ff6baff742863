"""Worker processes on this machine, which last as long as a run or a study."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from defensekit.api import DefenseKitError, Executor, Field, Workers
from defensekit_executors.work import check, cores, variables

TRIES = 2  # a worker may be killed by accident once; a stage that kills two would kill a third


class Local(Executor):
    """Runs stages in processes of their own, several at once.

    Cores are divided explicitly: ``workers`` stages at once with ``threads`` each. The number of threads is part of the
    stages' keys, since it can change their numbers; the number of workers is not.
    """

    workers: int | None = Field(None, ge=1, le=1_024, description="processes (as many as there are cores for)")
    threads: int = Field(1, ge=1, le=1_024, description="threads that each computes with")
    memory: float | None = Field(None, gt=0, description="GiB that each may take (no limit); enforced on Linux only")

    def machine(self) -> dict[str, Any]:
        return {**super().machine(), "threads": self.threads}

    @contextmanager
    def open(self) -> Iterator[Workers]:
        workers = _LocalWorkers(self.workers or max(1, cores() // self.threads), self.threads, self.memory)
        try:
            yield workers
        finally:
            workers.close()


class _LocalWorkers(Workers):
    """Processes, each started when it is first needed; one that dies is replaced."""

    def __init__(self, count: int, threads: int, memory: float | None) -> None:
        self.count = count
        self.threads = threads
        self.memory = memory
        self.closed = False
        self.starting = threading.Lock()
        self.started: list[_Process] = []
        self.idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(count):
            self.idle.put(None)

    @property
    def slots(self) -> int:
        return self.count

    def prepare(self) -> None:
        process = self.idle.get()
        try:
            process = process or self._start()
            with suppress(EOFError):  # the stage that it is to compute will see that it died
                process.prepare()
        finally:
            self.idle.put(process)

    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        process = self.idle.get()
        try:
            for last in (*[False] * (TRIES - 1), True):
                if process is None:
                    process = self._start()
                try:
                    return process.compute(stage, store, report)
                except EOFError as error:
                    how, process = process.death(), None
                    if last or self.closed:
                        again = "" if self.closed else f" ({TRIES} times)"
                        raise DefenseKitError(
                            f"{stage['title']}: the worker {how} while computing it{again}"
                        ) from error
        finally:
            if process and process.busy:  # an observer raised: what the process still sends belongs to this stage
                process.kill()
                process = None
            self.idle.put(process)

    def _start(self) -> "_Process":
        with self.starting:  # so that `close` ends every process
            if self.closed:
                raise DefenseKitError("the workers were ended")
            self.started.append(_Process(self.threads, self.memory))
            return self.started[-1]

    def close(self) -> None:
        """End every process, whatever it is doing."""
        with self.starting:
            self.closed = True
        for process in self.started:
            process.kill()


class _Process:
    """One worker: a Python process that computes stages until its connection is closed."""

    def __init__(self, threads: int, memory: float | None) -> None:
        ours, theirs = socket.socketpair()
        self.line = Connection(ours.detach())
        self.busy = False
        with theirs:
            # Ctrl-C goes to the main process only, which ends the workers. They print to standard error.
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "defensekit_executors.worker",
                    *map(str, (theirs.fileno(), threads, memory or 0)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                env=os.environ | variables(threads) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,
            )

    def prepare(self) -> None:
        """Let the process import what stages need; raises EOFError if it died."""
        with _hanging_up():
            self.line.send_bytes(b"null")
            self.line.recv_bytes()

    def compute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        """Compute a stage; raises EOFError if the process died."""
        self.busy = True
        with _hanging_up():
            self.line.send_bytes(json.dumps({"stage": stage, "store": str(store.absolute())}).encode())
        while True:
            with _hanging_up():
                what, *values = json.loads(self.line.recv_bytes())
            if what != "progress":
                self.busy = False
                return check(what, *values)
            report(*values)

    def death(self) -> str:
        """How a process whose connection closed ended, in words."""
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its connection"
        self.kill()
        if code >= 0:
            return f"ended (exit code {code})"
        name = signal.Signals(-code).name
        return f"was killed ({name}{': memory may have run out' if name in ('SIGKILL', 'SIGABRT') else ''})"

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.line.close()


@contextmanager
def _hanging_up() -> Iterator[None]:
    try:
        yield
    except (OSError, TypeError) as error:  # a broken pipe: the worker died; a closed connection: we ended it
        raise EOFError from error
