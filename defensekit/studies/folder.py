"""A study's folder: one file per finished run, one per failed run, and what the study was."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from defensekit.result.schema import Result
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.files import atomic_write, resolved

SUM = ".sha256"
PLUGINS = "plugins"
REMOVED = "-"  # before the key of a model that was removed again


class Folder:
    """``results/ID.json`` with its digest beside it (as ``sha256sum -c`` reads it), ``failed/ID.json``.

    Copies of the local plugins that a study ran with are in ``plugins/``.
    """

    def __init__(self, workspace: Path, name: str) -> None:
        self.path = (workspace / "studies" / name).absolute()
        resolved(self.path)  # results name folders in it
        self.results = self.path / "results"
        self.failed = self.path / "failed"

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """A study's folder to read from; it may be a copy outside a workspace."""
        folder = cls(path.parent, path.name)
        folder.path, folder.results, folder.failed = path, path / "results", path / "failed"
        return folder

    def done(self) -> set[str]:
        """The ids of the runs whose results are there and whole."""
        try:
            names = [entry.name for entry in os.scandir(self.results)]
        except FileNotFoundError:
            return set()
        return {name.removesuffix(SUM) for name in names if name.endswith(SUM) and self.whole(name.removesuffix(SUM))}

    def whole(self, id: str) -> bool:
        """Whether a result is there, as it was written."""
        path = self.results / f"{id}.json"
        try:
            with open(path, "rb") as result, open(f"{self.results / id}{SUM}", encoding="ascii") as digest:
                return digest.read() == _sum(path.name, result.read())
        except (OSError, ValueError):
            return False

    def write(self, id: str, result: Result) -> None:
        """Write a result, whole or not at all; its digest comes last."""
        self.write_bytes(id, result.model_dump_json(indent=1).encode() + b"\n")
        (self.failed / f"{id}.json").unlink(missing_ok=True)

    def write_bytes(self, id: str, content: bytes) -> None:
        """Write a result that is bytes already."""
        self.results.mkdir(parents=True, exist_ok=True)
        atomic_write(self.results / f"{id}.json", content)
        atomic_write(Path(f"{self.results / id}{SUM}"), _sum(f"{id}.json", content).encode())

    def fail(self, id: str, facts: dict[str, Any]) -> None:
        """Write down a run that ended without a result."""
        self.failed.mkdir(parents=True, exist_ok=True)
        written = {**facts, "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        atomic_write(self.failed / f"{id}.json", json.dumps(written, indent=1, ensure_ascii=False).encode())

    def failures(self) -> dict[str, dict[str, Any]]:
        """What is known of the runs that failed, by their ids."""
        failures = {}
        for path in sorted(self.failed.glob("*.json")):
            try:
                failures[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                continue  # a half of one says nothing, and the run has no result anyway
        return failures

    def describe(self, facts: dict[str, Any]) -> None:
        """Write down what the study is: its keys and its runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path / "study.json", json.dumps(facts, indent=1, ensure_ascii=False).encode())

    def copy_plugin(self, digest: str, name: str) -> Path:
        """Where a version of a local plugin file is kept, by its SHA-256."""
        return self.path / PLUGINS / digest[:16] / name

    def keep_plugin(self, file: Path) -> None:
        """Keep a copy of a local plugin file, for results to be repeated when it is changed or gone."""
        content = file.read_bytes()
        atomic_write(self.copy_plugin(hashlib.sha256(content).hexdigest(), file.name), content)

    def read(self) -> dict[str, Any]:
        """What the study was when it last ran.

        Raises:
            DefenseKitError: it never ran here, or the file is damaged.
        """
        path = self.path / "study.json"
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DefenseKitError(f"{self.path} has no study that was run") from error
        except (ValueError, RecursionError) as error:
            raise DefenseKitError(f"{path} is damaged ({error}); running the study writes it again") from error
        return facts

    def model_keys(self) -> set[str]:
        """The keys of the models that this study computed, and may therefore remove."""
        keys: set[str] = set()
        try:
            for line in (self.path / "models.txt").read_text(encoding="ascii").split():
                key = line.removeprefix(REMOVED)
                (keys.discard if line.startswith(REMOVED) else keys.add)(key)
        except FileNotFoundError:
            pass
        return keys

    def record_models(self, keys: Iterable[str], removed: bool = False) -> None:
        """Record models that are about to be computed, or that were removed: a study removes only those it computed."""
        self.path.mkdir(parents=True, exist_ok=True)
        # Several threads and processes append: a line is written at once.
        with (self.path / "models.txt").open("a", encoding="ascii") as file:
            file.write("".join(f"{REMOVED if removed else ''}{key}\n" for key in keys))


def _sum(name: str, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n"
