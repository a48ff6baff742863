"""Artifacts at a URL, for workers that can't read the store's folder."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from defensekit.models.checkpoint import Checkpoint, identity_digests
from defensekit.pipeline.executors import compute
from defensekit.pipeline.store import MANIFEST, Store, key_of
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.utils.files import file_digests


class RemoteStore:
    """Artifacts at an fsspec URL that every machine reads and writes.

    ``URL/KEY/manifest.json`` has an artifact's manifest and the name of the folder beside it that holds the files. Each
    writer has a folder of its own and puts the manifest last, unless another writer's exists: the first one
    wins, and an artifact is complete or absent. A model outside the store is kept in the same way, by its digest.
    """

    def __init__(self, url: str) -> None:
        """Raises UsageError where the URL is none that fsspec knows, or needs a package that is not installed."""
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        try:
            self.system, self.root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"artifacts can't travel through {url!r}: {error}") from error
        # A relative path starts from this folder, wherever the worker is.
        self.url = self.system.unstrip_protocol(self.root) if isinstance(self.system, LocalFileSystem) else url

    def pull(self, stage: dict[str, Any], store: Path) -> bool:
        """Copy a stage's artifact into the store; False if it is missing at the URL, or damaged there.

        Raises:
            DefenseKitError: the URL or the disk refused.
        """
        key, opened = key_of(stage), Store(store)
        scratch, folder = opened.scratch(key), store / "artifacts" / key
        with self._named():
            try:
                shutil.rmtree(scratch, ignore_errors=True)
                if not self._download(key, scratch):
                    return False
                folder.parent.mkdir(parents=True, exist_ok=True)
                scratch.rename(folder)
            except OSError:
                if not opened.has(key):  # another process finished it: that is as good
                    raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return True

    def push(self, stage: dict[str, Any], store: Path) -> None:
        """Copy the inputs of a stage to the URL, unless they are there.

        Raises:
            DefenseKitError: the URL refused.
        """
        with self._named():
            for needed in stage["inputs"].values():
                if not isinstance(needed, dict):
                    folder = store / "artifacts" / needed
                    self._upload(needed, folder / "files", partial(_read, folder))
                else:
                    model = Checkpoint(Path(needed["path"]))
                    self._upload(needed["digest"], model.folder, partial(_described, model))

    def compute(self, stage: dict[str, Any], report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute a stage from its inputs at the URL, and copy its artifact there.

        Raises:
            DefenseKitError: the stage failed, an input is missing, or the URL refused.
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
            artifact = artifacts / key_of(stage)
            with self._named():
                self._upload(artifact.name, artifact / "files", lambda: _read(artifact) | {"stage": stage})

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn a file system's own errors into one that names the URL."""
        try:
            yield
        except Exception as error:
            what = str(error) if isinstance(error, DefenseKitError) else f"{type(error).__name__}: {error}"
            raise DefenseKitError(f"{self.url}: {what}") from error

    def _manifest(self, key: str) -> dict[str, Any] | None:
        """The manifest's file; None if it is missing or can't be read."""
        try:
            described = json.loads(self.system.cat_file(f"{self.root}/{key}/{MANIFEST}"))
            names = [PurePosixPath(name) for name in (described["folder"], *described["manifest"]["files"])]
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        good = not any(name.is_absolute() or ".." in name.parts for name in names)
        return described if good else None

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

    def _download(self, key: str, target: Path) -> bool:
        """Copy an artifact; a damaged one at the URL counts as missing, and can be written again."""
        described = self._manifest(key)
        if not described:
            return False
        manifest = described["manifest"]
        (target / "files").mkdir(parents=True)
        for name in manifest["files"]:
            (target / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                self.system.get_file(f"{self.root}/{key}/{described['folder']}/{name}", str(target / "files" / name))
        if file_digests(target / "files") != manifest["files"]:
            self.system.rm_file(f"{self.root}/{key}/{MANIFEST}")
            return False
        (target / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        return True


def _read(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _described(model: Checkpoint) -> dict[str, Any]:
    return {"files": identity_digests(model.folder)}
