"""Artifacts by content: computed once, used by all, written whole or not at all, checked when read."""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from defensekit.utils.errors import DefenseKitError
from defensekit.utils.files import atomic_write, data_digest, file_digests

# To be raised when the core computes something else from the same stage: what was made before is then not used again.
FORMAT = 4
DISTRIBUTIONS = ("defensekit", "torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate")
MANIFEST = "manifest.json"


def key_of(stage: dict[str, Any]) -> str:
    """The key of a stage, planned or finished: a digest of everything that decides its contents.

    ``title`` and a component's ``plugin`` are for people, ``plugin_files`` and a component's ``location`` say where
    things lie: none is identity (a component carries the digest of its source, data and models outside the store that
    of their contents).
    """
    identity = {name: value for name, value in stage.items() if name not in ("plugin_files", "title")}
    identity["components"] = {
        role: {name: value for name, value in component.items() if name not in ("location", "plugin")}
        for role, component in stage["components"].items()
    }
    identity["inputs"] = {
        name: value["digest"] if isinstance(value, dict) else value for name, value in stage["inputs"].items()
    }
    return data_digest([FORMAT, identity])


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder of files, the stage as plain data, facts about it.

    ``seconds`` and ``peak_memory`` (bytes, of the process that made it) are what it took, ``digest`` is of its files.
    """

    key: str
    files: Path
    stage: dict[str, Any]
    facts: dict[str, Any]
    seconds: float
    peak_memory: int | None
    digest: str


class Damaged(DefenseKitError):
    """An artifact is not what its manifest says."""


class Store:
    """A folder of artifacts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checked: set[str] = set()

    def _place(self, key: str) -> Path:
        return self.root / "artifacts" / key

    def has(self, key: str) -> bool:
        """Whether the artifact is there (it is checked when it is opened)."""
        return (self._place(key) / MANIFEST).is_file()

    def open(self, key: str) -> Artifact:
        """Read an artifact.

        Raises:
            Damaged: its manifest can't be read, or a file is missing, added or changed.
        """
        artifact = self._read(key)
        if key not in self._checked:
            if key_of(artifact.stage) != key:
                raise Damaged(f"artifact {key[:12]}: its manifest describes another stage")
            if artifact.digest != data_digest(file_digests(artifact.files)):
                raise Damaged(f"artifact {key[:12]}: a file is missing, added or changed")
            self._checked.add(key)
        return artifact

    def _read(self, key: str) -> Artifact:
        """An artifact as its manifest has it."""
        place = self._place(key)
        try:
            manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            return Artifact(
                key=key,
                files=place / "files",
                stage=manifest["stage"],
                facts=manifest["facts"],
                seconds=float(manifest["seconds"]),
                peak_memory=manifest.get("peak_memory"),
                digest=data_digest(manifest["files"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"artifact {key[:12]}: its manifest can't be read ({error})") from error

    def peek(self, key: str) -> Artifact | None:
        """What is known of an artifact, unchecked; None where it is not there."""
        try:
            return self._read(key)
        except Damaged:
            return None

    def sample(self, keys: Sequence[str]) -> tuple[float, float]:
        """Seconds and bytes that artifacts took, on the average of those that are there."""
        found = [(artifact.seconds, _size(artifact.files)) for key in keys if (artifact := self.peek(key))]
        count = max(len(found), 1)
        return sum(seconds for seconds, _ in found) / count, sum(size for _, size in found) / count

    def keys(self) -> set[str]:
        """Every artifact that is there (or half removed: opening it tells)."""
        try:
            return set(os.listdir(self.root / "artifacts"))
        except FileNotFoundError:
            return set()

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None] = lambda: None) -> "Iterator[None]":
        """The right to make an artifact, against every other thread and process with this store.

        It ends with the block, or with the life of the process. ``waiting`` is called once, if somebody else has it.
        Nobody takes a second lock while holding one: several artifacts share each.
        """
        from filelock import FileLock, Timeout

        place = self.root / "locks"
        place.mkdir(parents=True, exist_ok=True)
        # A lock file is never deleted: whoever waits on a deleted one holds nothing. So there is a bounded number.
        lock = FileLock(place / key[:3], thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire(poll_interval=0.05)
        try:
            yield
        finally:
            lock.release()

    def _manifest(self, place: Path) -> dict[str, Any]:
        """A manifest as it is, unchecked; an empty one where it can't be read or is none."""
        try:
            found = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and isinstance(found.get("stage"), dict) else {}

    def scratch(self, key: str) -> Path:
        """Where this process puts together what is not in its place yet; `sweep` knows it when the process is dead."""
        return self.root / "unfinished" / f"{key}.{_HOST}.{os.getpid()}"

    @contextmanager
    def create(self, stage: dict[str, Any]) -> "Iterator[ArtifactWriter]":
        """A folder to write an artifact into; it takes its place in the store when the block ends without an error.

        Raises:
            DefenseKitError: the disk refused.
        """
        key = key_of(stage)
        scratch = self.scratch(key)
        started = time.perf_counter()
        _forget_peak()
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            (scratch / "files").mkdir(parents=True)
            draft = ArtifactWriter(scratch / "files", {})
            yield draft
            for path in draft.files.rglob("*"):
                # Some writers make private files; what stands in a folder of results is as readable as the rest.
                path.chmod(path.stat().st_mode | 0o444)
            manifest = {
                "format": FORMAT,
                "stage": stage,
                "facts": draft.facts,
                "seconds": round(time.perf_counter() - started, 3),
                "peak_memory": _peak(),
                "made_with": {name: version(name) for name in DISTRIBUTIONS},
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "files": file_digests(draft.files),
            }
            atomic_write(scratch / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
            self._place(key).parent.mkdir(parents=True, exist_ok=True)
            try:
                scratch.rename(self._place(key))
            except OSError:
                if not self.has(key):
                    raise
                # Somebody else finished the same stage meanwhile: theirs is as good as ours.
        except OSError as error:
            raise DefenseKitError(
                f"{stage.get('title', stage['kind'])}: {error.strerror or error}: {scratch}"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def remove(self, key: str) -> int:
        """Delete an artifact; returns the bytes it took."""
        place = self._place(key)
        size = _size(place)
        self._checked.discard(key)
        # The manifest goes first: what is interrupted here is no artifact any more.
        (place / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        return size

    def entries(self) -> list[tuple[str, dict[str, Any], int]]:
        """Key, manifest and size in bytes of every artifact, oldest first; a damaged manifest is an empty one."""
        found = []
        for place in (self.root / "artifacts").glob("*"):
            found.append((place.name, self._manifest(place), _size(place)))
        return sorted(found, key=lambda entry: (str(entry[1].get("created", "")), entry[0]))

    def sweep(self) -> int:
        """Remove what killed runs left unfinished; returns the bytes freed."""
        freed = 0
        for place in (self.root / "unfinished").glob(f"*.{_HOST}.*"):
            if not alive(place.name.rpartition(".")[2]):
                freed += _size(place)
                shutil.rmtree(place, ignore_errors=True)
        for place in (self.root / "artifacts").glob("*"):
            if not (place / MANIFEST).is_file():
                freed += _size(place)
                shutil.rmtree(place, ignore_errors=True)
        return freed


@dataclass(frozen=True)
class ArtifactWriter:
    """An artifact that is being made: put files into ``files`` and facts into ``facts``."""

    files: Path
    facts: dict[str, Any]


# Processes of other machines may write into the same store, and their numbers say nothing here.
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def _forget_peak() -> None:
    """Let the process's peak memory start anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """Bytes that this process had in memory at its peak, since it was last forgotten."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def alive(pid: str) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
