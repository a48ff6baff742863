"""Artifacts by content: computed once, shared by all runs, written completely or not at all, checked when read."""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.utils.files import alive, atomic_write, data_digest, file_digests, resolved

# To be raised when the core computes something else from the same stage: older artifacts are then not used again.
FORMAT = 6
DISTRIBUTIONS = ("defensekit", "torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate")
MANIFEST = "manifest.json"
_KEY = re.compile("[0-9a-f]{64}")


@cache
def versions() -> dict[str, str]:
    """The installed versions of what numbers may depend on."""
    return {name: version(name) for name in DISTRIBUTIONS}


def key_of(stage: dict[str, Any]) -> str:
    """The key of a stage, planned or finished: a digest of everything that decides its contents.

    ``title`` and a component's ``plugin`` are for people, ``plugin_files`` and a component's ``location`` are paths:
    none of them is identity. Components carry the digest of their source; data and models outside the store carry the
    digest of their contents.
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

    ``seconds`` and ``peak_memory`` (bytes, of the process) are what computing it took, ``digest`` is of its files, and
    ``made_with`` has the versions of what computed it.
    """

    key: str
    files: Path
    stage: dict[str, Any]
    facts: dict[str, Any]
    seconds: float
    peak_memory: int | None
    digest: str
    made_with: dict[str, str]


class Damaged(DefenseKitError):
    """An artifact differs from its manifest."""


class Store:
    """A folder of artifacts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checked: set[str] = set()

    def _folder(self, key: str) -> Path:
        return self.root / "artifacts" / key

    def _tombstone(self, key: str) -> Path:
        """The manifest of an artifact that was removed."""
        return self.root / "removed" / f"{key}.json"

    def has(self, key: str) -> bool:
        """Whether the artifact exists (it is checked when it is opened)."""
        return (self._folder(key) / MANIFEST).is_file()

    def open(self, key: str) -> Artifact:
        """Read an artifact.

        Raises:
            Damaged: its manifest can't be read, or a file is missing, added or changed.
        """
        artifact = self._read(key, self._folder(key) / MANIFEST)
        if key not in self._checked:
            if key_of(artifact.stage) != key:
                raise Damaged(f"artifact {key[:12]}: its manifest describes another stage")
            if artifact.digest != data_digest(file_digests(artifact.files)):
                raise Damaged(f"artifact {key[:12]}: a file is missing, added or changed")
            self._checked.add(key)
        return artifact

    def _read(self, key: str, manifest_file: Path) -> Artifact:
        """An artifact as described by its manifest."""
        try:
            manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
            return Artifact(
                key=key,
                files=self._folder(key) / "files",
                stage=manifest["stage"],
                facts=manifest["facts"],
                seconds=float(manifest["seconds"]),
                peak_memory=manifest.get("peak_memory"),
                digest=data_digest(manifest["files"]),
                made_with=dict(manifest["made_with"]),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Damaged(f"artifact {key[:12]}: its manifest can't be read ({error})") from error

    def peek(self, key: str) -> Artifact | None:
        """An artifact, unchecked; None if it does not exist."""
        return self._peek(key, self._folder(key) / MANIFEST)

    def removed(self, key: str) -> Artifact | None:
        """An artifact that was removed, as it was, without its files: what it took is still to be told."""
        return self._peek(key, self._tombstone(key))

    def _peek(self, key: str, manifest_file: Path) -> Artifact | None:
        try:
            return self._read(key, manifest_file)
        except Damaged:
            return None

    def sample(self, keys: Sequence[str]) -> tuple[float, float]:
        """The mean seconds and bytes of the artifacts that exist."""
        measured = [(artifact.seconds, _size(artifact.files)) for key in keys if (artifact := self.peek(key))]
        count = max(len(measured), 1)
        return sum(seconds for seconds, _ in measured) / count, sum(size for _, size in measured) / count

    def keys(self) -> set[str]:
        """The keys of all artifacts, including half removed ones: opening those fails."""
        return {folder.name for folder in self._folders()}

    def _folders(self) -> list[Path]:
        """The folders of all artifacts; what else somebody keeps beside them is none of ours."""
        try:
            return [Path(found) for found in os.scandir(self.root / "artifacts") if _is_artifact(found)]
        except FileNotFoundError:
            return []

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None] = lambda: None) -> "Iterator[None]":
        """Lock an artifact against every other thread and process with this store.

        The lock ends with the block or the process. ``waiting`` is called once if another process has it. Don't take a
        second lock while holding one: several artifacts share each lock.
        """
        from filelock import FileLock, Timeout

        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        # A lock file is never deleted: a process waiting on a deleted one locks nothing. So their number is bounded.
        lock = FileLock(folder / key[:3], thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire(poll_interval=0.05)
        try:
            yield
        finally:
            lock.release()

    def _manifest(self, folder: Path) -> dict[str, Any]:
        """A manifest, unchecked; an empty one if it can't be read."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return manifest if isinstance(manifest, dict) and isinstance(manifest.get("stage"), dict) else {}

    def scratch(self, key: str) -> Path:
        """A folder for this process's unfinished files; `sweep` removes it once the process is dead."""
        return self.root / "unfinished" / f"{key}.{_HOST}.{os.getpid()}"

    @contextmanager
    def create(self, stage: dict[str, Any]) -> "Iterator[ArtifactWriter]":
        """A folder to write an artifact into; it moves into the store when the block ends without an error.

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
                # Some writers make private files; make them as readable as the others.
                path.chmod(path.stat().st_mode | 0o444)
            manifest = {
                "format": FORMAT,
                "stage": stage,
                "facts": draft.facts,
                "seconds": round(time.perf_counter() - started, 3),
                "peak_memory": _peak(),
                "made_with": versions(),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "files": file_digests(draft.files),
            }
            atomic_write(scratch / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
            self._folder(key).parent.mkdir(parents=True, exist_ok=True)
            try:
                scratch.rename(self._folder(key))
            except OSError:
                if not self.has(key):  # what a killed process left of a removed one is no artifact
                    shutil.rmtree(self._folder(key), ignore_errors=True)
                    scratch.rename(self._folder(key))
                # Else another process finished the same stage meanwhile: its artifact is as good.
        except OSError as error:
            raise DefenseKitError(
                f"{stage.get('title', stage['kind'])}: {error.strerror or error}: {scratch}"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def remove(self, key: str) -> int:
        """Delete an artifact's files, and keep its manifest as of one that was; returns the bytes it took."""
        folder = self._folder(key)
        size = _size(folder)
        self._checked.discard(key)
        # The manifest goes first: after an interruption the rest is no artifact.
        with suppress(FileNotFoundError):
            self._tombstone(key).parent.mkdir(exist_ok=True)
            (folder / MANIFEST).replace(self._tombstone(key))
        shutil.rmtree(folder, ignore_errors=True)
        return size

    def entries(self) -> list[tuple[str, dict[str, Any], int]]:
        """Key, manifest and size in bytes of every artifact, oldest first; a damaged manifest is an empty one."""
        artifacts = []
        for folder in self._folders():
            artifacts.append((folder.name, self._manifest(folder), _size(folder)))
        return sorted(artifacts, key=lambda entry: (str(entry[1].get("created", "")), entry[0]))

    def sweep(self) -> int:
        """Remove unfinished files of killed runs; returns the bytes freed."""
        freed = 0
        for folder in (self.root / "unfinished").glob(f"*.{_HOST}.*"):
            if _KEY.fullmatch(folder.name.partition(".")[0]) and not alive(folder.name.rpartition(".")[2]):
                freed += _size(folder)
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self._folders():
            if not (folder / MANIFEST).is_file():
                freed += _size(folder)
                shutil.rmtree(folder, ignore_errors=True)
        return freed


@dataclass(frozen=True)
class ArtifactWriter:
    """An artifact that is being written: put files into ``files`` and facts into ``facts``."""

    files: Path
    facts: dict[str, Any]


# Processes of other machines may write into the same store, and their process numbers mean nothing here.
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def _forget_peak() -> None:
    """Reset the process's peak memory, if the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """This process's peak memory in bytes, since it was last reset."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _is_artifact(found: "os.DirEntry[str]") -> bool:
    return bool(_KEY.fullmatch(found.name)) and found.is_dir()


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, which another process may be removing."""
    size = 0
    for within, _, names in os.walk(folder):  # passes over a folder that is gone
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(within, name).stat().st_size
    return size


def refuse_inside_store(path: Path) -> None:
    """Refuse to write a user's output among the artifacts of a store.

    Raises:
        UsageError: the path lies in a store, links followed.
    """
    whole = resolved(path)
    for folder in (whole, *whole.parents):
        if folder.name == "store" and (folder / "artifacts").is_dir():
            raise UsageError(f"{path} lies in the store {folder}, which holds artifacts alone; name another folder")
