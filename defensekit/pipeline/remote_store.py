"""Artifacts at a URL: for stages that are computed where nobody sees the store's folder."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from defensekit.models.checkpoint import Checkpoint
from defensekit.pipeline.executors import compute
from defensekit.pipeline.store import MANIFEST, Store, key_of
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.utils.files import file_digest, file_digests


class RemoteStore:
    """A place that every machine reads and writes, by an fsspec URL.

    ``URL/KEY/manifest.json`` has an artifact's manifest and the name of the folder beside it that holds the files. Each
    writer has a folder of its own and puts the manifest last, unless somebody's already exists: the first one
    stands, and an artifact is whole or not there. A model outside the store is kept in the same way, by its digest.
    """

    def __init__(self, url: str) -> None:
        """Raises UsageError where the URL is none that fsspec knows, or needs a package that is not installed."""
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        try:
            self.system, self.root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"artifacts can't travel through {url!r}: {error}") from error
        # A path starts from this folder, wherever the worker is.
        self.url = self.system.unstrip_protocol(self.root) if isinstance(self.system, LocalFileSystem) else url

    def pull(self, stage: dict[str, Any], store: Path) -> bool:
        """Copy what a stage makes into the store; False where it is not at the URL, or damaged there.

        Raises:
            DefenseKitError: the URL or the disk refused.
        """
        key, opened = key_of(stage), Store(store)
        scratch, place = opened.scratch(key), store / "artifacts" / key
        with self._named():
            try:
                shutil.rmtree(scratch, ignore_errors=True)
                if not self._download(key, scratch):
                    return False
                place.parent.mkdir(parents=True, exist_ok=True)
                scratch.rename(place)
            except OSError:
                if not opened.has(key):  # somebody else's is as good
                    raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return True

    def push(self, stage: dict[str, Any], store: Path) -> None:
        """Copy what a stage needs to the URL, as far as it is not there yet.

        Raises:
            DefenseKitError: the URL refused.
        """
        with self._named():
            for needed in stage["inputs"].values():
                if not isinstance(needed, dict):
                    place = store / "artifacts" / needed
                    self._upload(needed, place / "files", partial(_read, place))
                else:
                    model = Checkpoint(Path(needed["path"]))
                    self._upload(needed["digest"], model.folder, partial(_described, model))

    def compute(self, stage: dict[str, Any], report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute a stage from what was offered; what it makes is at the URL then.

        Raises:
            DefenseKitError: what went wrong.
        """
        with TemporaryDirectory(prefix="defensekit-") as folder:
            artifacts = Path(folder) / "artifacts"
            here = dict(stage["inputs"])
            with self._named():
                for name, needed in stage["inputs"].items():
                    key = needed["digest"] if isinstance(needed, dict) else needed
                    if not (artifacts / key).exists() and not self._download(key, artifacts / key):
                        raise DefenseKitError(f"{stage['title']}: its {name} is not there any more; start it again")
                    if isinstance(needed, dict):
                        here[name] = {**needed, "path": str(artifacts / key / "files")}
            compute({**stage, "inputs": here}, Path(folder), report)
            made = artifacts / key_of(stage)
            with self._named():
                self._upload(made.name, made / "files", lambda: _read(made) | {"stage": stage})

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Each file system has errors of its own: here they become one that names the URL."""
        try:
            yield
        except Exception as error:
            what = str(error) if isinstance(error, DefenseKitError) else f"{type(error).__name__}: {error}"
            raise DefenseKitError(f"{self.url}: {what}") from error

    def _manifest(self, key: str) -> dict[str, Any] | None:
        """What the manifest's file says, None where it is not there or can't be read."""
        try:
            found = json.loads(self.system.cat_file(f"{self.root}/{key}/{MANIFEST}"))
            names = [PurePosixPath(name) for name in (found["folder"], *found["manifest"]["files"])]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        good = not any(name.is_absolute() or ".." in name.parts for name in names)
        return found if good else None

    def _upload(self, key: str, folder: Path, describe: Callable[[], dict[str, Any]]) -> None:
        if self._manifest(key):
            return
        manifest, mine = describe(), uuid4().hex
        for name in manifest["files"]:
            target = f"{self.root}/{key}/{mine}/{name}"
            self.system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.system.put_file(str(folder / name), target)
        if not self._manifest(key):
            text = json.dumps({"folder": mine, "manifest": manifest}, ensure_ascii=False)
            self.system.pipe_file(f"{self.root}/{key}/{MANIFEST}", text.encode())

    def _download(self, key: str, place: Path) -> bool:
        """Copy an artifact to a place; what is damaged at the URL is taken for not there, and can be written anew."""
        found = self._manifest(key)
        if not found:
            return False
        manifest = found["manifest"]
        (place / "files").mkdir(parents=True)
        for name in manifest["files"]:
            (place / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                self.system.get_file(f"{self.root}/{key}/{found['folder']}/{name}", str(place / "files" / name))
        if file_digests(place / "files") != manifest["files"]:
            self.system.rm_file(f"{self.root}/{key}/{MANIFEST}")
            return False
        (place / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        return True


def _read(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    return found


def _described(model: Checkpoint) -> dict[str, Any]:
    return {"files": {path.name: file_digest(path) for path in model.model_files()}}
