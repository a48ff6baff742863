"""The manifest of a purified model: what its files and tensors are, so that a change of either is seen."""

import json
from collections.abc import Mapping
from pathlib import Path

from defensekit.models.checkpoint import Checkpoint
from defensekit.utils.files import atomic_write, file_digests

MODEL_MANIFEST = "manifest.json"


def write_manifest(folder: Path, tensors: Mapping[str, str] | None = None, stage: str | None = None) -> None:
    """Write the manifest of a model's folder, in place of one that the suspect brought along.

    Args:
        folder: the model's.
        tensors: digests of its tensors by name, where the folder no longer holds a whole model.
        stage: the key of the stage that made it.

    Raises:
        OSError: the disk refused.
    """
    (folder / MODEL_MANIFEST).unlink(missing_ok=True)
    digests = Checkpoint(folder).tensor_digests() if tensors is None else dict(tensors)
    provenance = {"stage": stage} if stage else {}
    content = json.dumps({**provenance, "files": file_digests(folder), "tensors": digests}, indent=1)
    atomic_write(folder / MODEL_MANIFEST, content.encode())
