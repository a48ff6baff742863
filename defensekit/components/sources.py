"""Named data and models."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from defensekit.components.base import Component

if TYPE_CHECKING:
    from defensekit.text import Row


@dataclass(frozen=True)
class Dataset:
    """Labelled rows as a source has them.

    ``train`` is always there; ``dev`` and ``test`` only where the source keeps them apart. Row ids are unique over
    all of them; ``labels`` are the names behind the label numbers; ``notes`` say what was left out and why.
    """

    labels: tuple[str, ...]
    train: "list[Row]"
    dev: "list[Row] | None" = None
    test: "list[Row] | None" = None
    notes: list[str] = field(default_factory=list)


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
