"""Artifacts by content: computed once, used by all, written whole or not at all, checked when read."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from defensekit.errors import DefenseKitError
from defensekit.files import data_digest, file_digests, write_whole

# To be raised when the core computes something else from the same stage: what was made before is then not used again.
FORMAT = 2
DISTRIBUTIONS = ("defensekit", "torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate")
MANIFEST = "manifest.json"


def key_of(stage: dict[str, Any]) -> str:
    """The key of a stage, planned or finished: a digest of everything that decides its contents.

    ``title`` is for people, ``plugin_files`` and a component's ``location`` say where things lie: none is identity (a
    component carries the digest of its source, data and models outside the store that of their contents).
    """
    identity = {name: value for name, value in stage.items() if name not in ("plugin_files", "title")}
    identity["components"] = {
        role: {name: value for name, value in component.items() if name != "location"}
        for role, component in stage["components"].items()
    }
    identity["inputs"] = {
        name: value["digest"] if isinstance(value, dict) else value for name, value in stage["inputs"].items()
    }
    return data_digest([FORMAT, identity])


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder of files, the stage as plain data, facts about it, the seconds it took."""

    key: str
    files: Path
    stage: dict[str, Any]
    facts: dict[str, Any]
    seconds: float


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
        place = self._place(key)
        try:
            manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            files, stage = manifest["files"], manifest["stage"]
            artifact = Artifact(key, place / "files", stage, manifest["facts"], manifest["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"artifact {key[:12]}: its manifest can't be read ({error})") from error
        if key not in self._checked:
            if key_of(stage) != key:
                raise Damaged(f"artifact {key[:12]}: its manifest describes another stage")
            if files != file_digests(artifact.files):
                raise Damaged(f"artifact {key[:12]}: a file is missing, added or changed")
            self._checked.add(key)
        return artifact

    @contextmanager
    def create(self, stage: dict[str, Any]) -> "Iterator[Draft]":
        """A folder to write an artifact into; it takes its place in the store when the block ends without an error.

        Raises:
            DefenseKitError: the disk refused.
        """
        key = key_of(stage)
        scratch = self.root / "unfinished" / f"{key}.{os.getpid()}"
        started = time.perf_counter()
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            (scratch / "files").mkdir(parents=True)
            draft = Draft(scratch / "files", {})
            yield draft
            for path in draft.files.rglob("*"):
                # Some writers make private files; what stands in a folder of results is as readable as the rest.
                path.chmod(path.stat().st_mode | 0o444)
            manifest = {
                "format": FORMAT,
                "stage": stage,
                "facts": draft.facts,
                "seconds": round(time.perf_counter() - started, 3),
                "made_with": {name: version(name) for name in DISTRIBUTIONS},
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "files": file_digests(draft.files),
            }
            write_whole(scratch / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
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
            try:
                manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                manifest = {}
            found.append((place.name, manifest, _size(place)))
        return sorted(found, key=lambda entry: (entry[1].get("created", ""), entry[0]))

    def sweep(self) -> int:
        """Remove what killed runs left unfinished; returns the bytes freed."""
        freed = 0
        for place in (self.root / "unfinished").glob("*"):
            if not _alive(place.name.rpartition(".")[2]):
                freed += _size(place)
                shutil.rmtree(place, ignore_errors=True)
        for place in (self.root / "artifacts").glob("*"):
            if not (place / MANIFEST).is_file():
                freed += _size(place)
                shutil.rmtree(place, ignore_errors=True)
        return freed


@dataclass(frozen=True)
class Draft:
    """An artifact that is being made: put files into ``files`` and facts into ``facts``."""

    files: Path
    facts: dict[str, Any]


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
