"""Named data and models."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from defensekit.components.base import Component
from defensekit.text import Dataset


class DatasetSource(Component):
    """Labelled text under a name."""

    kind: ClassVar[str] = "dataset"

    @abstractmethod
    def load(self) -> Dataset:
        """Read the rows, in an order that is always the same."""

    @abstractmethod
    def contents(self, say: Callable[[str], None]) -> str:
        """A digest of the contents, so that stages can be keyed by them; fetches them where that is needed.

        ``say`` takes a line for the user, such as what is being downloaded.
        """


class ModelSource(Component):
    """A pretrained model under a name."""

    kind: ClassVar[str] = "model"

    @abstractmethod
    def folder(self) -> Path:
        """A local folder with the model's config, tokenizer and safetensors."""
