"""Models from a local folder, or from a hub by id and revision."""

import re
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from defensekit.components.sources import ModelSource
from defensekit.utils.errors import DefenseKitError


def hub_parameters(text: str) -> dict[str, str] | None:
    """``owner/name`` or ``owner/name@revision`` as parameters of a hub source; None for any other text."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text)
    if match is None:
        return None
    return {"name": "hub", "id": match[1], **({"revision": match[2]} if match[2] else {})}


class FolderModel(ModelSource):
    """A model in a local folder."""

    location: ClassVar[frozenset[str]] = frozenset({"path"})

    path: Path = Field(description="the folder with config.json, tokenizer and safetensors")

    def folder(self) -> Path:
        """The local folder."""
        return self.path


class HubModel(ModelSource):
    """A model of a hub, at a revision; only configs, tokenizers and safetensors are downloaded."""

    location: ClassVar[frozenset[str]] = frozenset({"id", "revision"})
    _files: ClassVar = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]

    id: str = Field(description="the hub's name for it, as in owner/name")
    revision: str = Field(description="a commit, tag or branch")

    def folder(self) -> Path:
        """The folder of the snapshot in the hub's cache, downloaded if necessary."""
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.id, revision=self.revision, allow_patterns=self._files))
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise DefenseKitError(
                f"model: {self.id} could not be downloaded from the hub ({type(error).__name__}: {reason})"
            ) from error
