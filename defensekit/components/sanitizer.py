"""Sanitizers: input-level defenses, which rewrite what a model is asked and leave the model as it is."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from defensekit.components.base import Component

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class SanitizerContext:
    """What a sanitizer may use besides the texts.

    ``language_model()`` loads the causal model that the recipe names, in float32 and eval mode on the device, with its
    tokenizer; ``positions`` is how many tokens it can read, None where there is no limit. ``max_length`` is how many
    tokens of a row the classifier reads, and ``report(done, total)`` shows progress.
    """

    language_model: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]"
    positions: int | None
    max_length: int
    seed: int
    report: Callable[[int, int], None]


class Sanitizer(Component):
    """Rewrites texts before the suspect reads them.

    It is shown texts and nothing else: no labels, and not whether they carry a trigger. The two texts of a pair come
    one by one. What becomes of a text may not hang on the texts beside it: in use there is one.

    What is costly belongs into `inspect`, which is done once for all values of the parameters in ``late``.
    """

    kind: ClassVar[str] = "sanitizer"
    # Whether the recipe has to give a causal language model, under `model:`.
    reads_with_language_model: ClassVar[bool] = False
    # Parameters that `inspect` does not look at; they have defaults.
    late: ClassVar[frozenset[str]] = frozenset()

    def inspect(self, texts: Sequence[str], context: SanitizerContext) -> Sequence[Any]:
        """What has to be known of every text, as plain data (JSON)."""
        return [None] * len(texts)

    @abstractmethod
    def sanitize(self, texts: Sequence[str], findings: Sequence[Any], context: SanitizerContext) -> Sequence[str]:
        """Every text as the suspect is to read it; ``found`` is what `inspect` gave. One with words keeps some."""
