"""What a study is doing, for those who look from another terminal."""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from defensekit.components import Observer
from defensekit.studies.folder import Folder
from defensekit.studies.planning import StudyPlan
from defensekit.utils.files import alive, atomic_write

EVERY = 1.0  # seconds between two writings
SILENT = 120.0  # seconds without an update after which a process counts as ended


class Status(Observer):
    """Writes what goes on into the study's folder, one file per process that runs it."""

    _path: Path = PrivateAttr()
    _facts: dict[str, Any] = PrivateAttr()
    _written: float = PrivateAttr(default=0.0)

    @classmethod
    def of(cls, plan: StudyPlan) -> "Status":
        """For a plan that is about to be run."""
        status = cls()
        status._path = plan.folder.path / "status" / f"{socket.gethostname()}-{os.getpid()}.json"
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        status._facts = {**facts, "stages": {}, "left": ""}
        status._path.parent.mkdir(parents=True, exist_ok=True)
        return status

    def for_run(self, name: str, axes: Mapping[str, Any]) -> Observer:
        """An observer that writes down what one run's stages do."""
        return _Run(status=self, name=name)

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def study_started(self, runs: Sequence[str], slots: int) -> None:
        """Write that the study is running."""
        self._write(0)

    def time_left(self, left: str) -> None:
        """Write how long the rest takes."""
        self._facts["left"] = left
        self._write(EVERY)

    def begin(self, what: str) -> None:
        """A stage of a run is being made."""
        self._facts["stages"][what] = {"since": time.time(), "done": 0, "total": 0}
        self._write(0)

    def advance(self, what: str, done: int, total: int) -> None:
        """So much of it is done."""
        if what in self._facts["stages"]:
            self._facts["stages"][what] |= {"done": done, "total": total}
        self._write(EVERY)

    def end(self, what: str) -> None:
        """It is there."""
        self._facts["stages"].pop(what, None)
        self._write(EVERY)

    def drop(self, what: str) -> None:
        """It failed."""
        self._facts["stages"].pop(what, None)
        self._write(0)

    def _write(self, every: float) -> None:
        if (now := time.time()) - self._written >= every:
            self._written = now
            atomic_write(self._path, json.dumps({**self._facts, "updated": now}).encode())


class _Run(Observer):
    """Reports what one run's stages do to the study's status."""

    status: Status
    name: str

    def stage_started(self, title: str) -> None:
        self.status.begin(f"{self.name}: {title}")

    def progress(self, title: str, done: int, total: int) -> None:
        self.status.advance(f"{self.name}: {title}", done, total)

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        self.status.end(f"{self.name}: {title}")

    def stage_failed(self, title: str, error: str) -> None:
        self.status.drop(f"{self.name}: {title}")


def status_of(path: Path) -> dict[str, Any]:
    """How far the study of a folder is: counts of runs, what failed, and the processes that are at work on it.

    Raises:
        DefenseKitError: it never ran in this workspace.
    """
    folder = Folder.at(path)
    ids = [run["id"] for run in folder.read()["runs"]]
    done = folder.done()
    failed = {id: facts for id, facts in folder.failures().items() if id in set(ids)}
    return {
        "runs": len(ids),
        "done": sum(id in done - failed.keys() for id in ids),
        "failed": [f"{facts['run']}: {facts['error']}" for facts in failed.values()],
        "processes": list(_processes(folder)),
    }


def alone(folder: Folder) -> bool:
    """Whether no other process is at work on a study, as far as can be told."""
    mine = socket.gethostname(), os.getpid()
    return all((facts["host"], facts["pid"]) == mine for facts in _processes(folder))


def _processes(folder: Folder) -> Iterator[dict[str, Any]]:
    """Those that are at work, as far as can be told: here by their number, elsewhere by when they were heard of."""
    now = time.time()
    for path in sorted((folder.path / "status").glob("*.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        silent = now - facts["updated"]
        here = facts["host"] == socket.gethostname()
        if not (alive(str(facts["pid"])) if here else silent < SILENT):
            continue
        stages = {title: {**stage, "for": now - stage["since"]} for title, stage in facts["stages"].items()}
        yield {**facts, "silent": silent, "stages": stages}
