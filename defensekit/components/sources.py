"""Sources of data sets and of models."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from defensekit.components.base import Component
from defensekit.text import Dataset, TaskKind


class DatasetSource(Component):
    """A named source of labelled text, or of instructions.

    Attributes:
        task: what a model is to answer with: a label, or (``generation``) a text.
    """

    kind: ClassVar[str] = "dataset"
    task: ClassVar[TaskKind] = "classification"

    @abstractmethod
    def load(self) -> Dataset:
        """Read the rows.

        Returns:
            The rows and labels, always in the same order.

        Raises:
            UsageError: the data are missing or invalid.
        """

    @abstractmethod
    def contents(self, say: Callable[[str], None]) -> str:
        """A digest of the contents, which is part of the stages' keys; downloads them if necessary.

        Args:
            say: shows a line to the user, such as what is being downloaded.

        Returns:
            The digest.

        Raises:
            UsageError: the data are missing or invalid.
        """


class ModelSource(Component):
    """A named source of a pretrained model."""

    kind: ClassVar[str] = "model"

    @abstractmethod
    def folder(self) -> Path:
        """The model's folder; downloads it if necessary.

        Returns:
            A local folder with config, tokenizer and safetensors.
        """
