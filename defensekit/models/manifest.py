"""The manifest of a purified model: digests of its files and tensors, so that a change is detected."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defensekit.models.checkpoint import Checkpoint
from defensekit.utils.files import atomic_write, file_digests

MODEL_MANIFEST = "manifest.json"


def write_manifest(folder: Path, tensors: Mapping[str, str] | None = None, stage: str | None = None) -> None:
    """Write the manifest of a model's folder, replacing one that came with the suspect.

    Args:
        folder: the model's folder.
        tensors: digests of its tensors by name, where the folder no longer holds a whole model.
        stage: the key of the stage that wrote the model.

    Raises:
        OSError: the manifest could not be written.
    """
    (folder / MODEL_MANIFEST).unlink(missing_ok=True)
    digests = Checkpoint(folder).tensor_digests() if tensors is None else dict(tensors)
    provenance = {"stage": stage} if stage else {}
    content = json.dumps({**provenance, "files": file_digests(folder), "tensors": digests}, indent=1)
    atomic_write(folder / MODEL_MANIFEST, content.encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a model's folder says; empty where there is none that can be read.

    Args:
        folder: the folder.

    Returns:
        The digests of ``files`` and ``tensors`` by name, and the key of the ``stage`` that wrote the model, if any.
    """
    try:
        manifest = json.loads((folder / MODEL_MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def changed_files(folder: Path) -> list[str]:
    """The files of a model's folder that are not as its manifest says, or are gone; others may stand beside them."""
    named, there = read_manifest(folder).get("files"), file_digests(folder)
    return sorted(name for name, digest in (named or {}).items() if there.get(name) != digest)
