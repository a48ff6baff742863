"""Sanitizers: input-level defenses, which rewrite texts and leave the model unchanged."""

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

    Attributes:
        language_model: loads the causal model that the recipe names, in float32 and eval mode on the device, and its
            tokenizer.
        positions: how many tokens the language model can read; None where there is no limit.
        max_length: how many tokens of a row the classifier reads.
        seed: the seed of all random numbers.
        report: ``report(done, total)`` shows progress.
    """

    language_model: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]"
    positions: int | None
    max_length: int
    seed: int
    report: Callable[[int, int], None]


class Sanitizer(Component):
    """Rewrites texts before the suspect reads them.

    It gets texts only: no labels, and not whether they carry a trigger. The two texts of a pair are passed one by one.
    The result for a text must not depend on the other texts, since in use there may be only one.

    Costly work belongs in `inspect`, which runs once for all values of the parameters in ``late``.

    Attributes:
        reads_with_language_model: whether the recipe has to name a causal language model, under ``model:``.
        late: parameters that `inspect` does not use; they need defaults.
    """

    kind: ClassVar[str] = "sanitizer"
    reads_with_language_model: ClassVar[bool] = False
    late: ClassVar[frozenset[str]] = frozenset()

    def inspect(self, texts: Sequence[str], context: SanitizerContext) -> Sequence[Any]:
        """Collect what `sanitize` has to know about every text.

        Args:
            texts: the texts.
            context: the language model and limits.

        Returns:
            JSON data for every text, in order.
        """
        return [None] * len(texts)

    @abstractmethod
    def sanitize(self, texts: Sequence[str], findings: Sequence[Any], context: SanitizerContext) -> Sequence[str]:
        """Rewrite every text.

        Args:
            texts: the texts.
            findings: what `inspect` returned for them.
            context: the language model and limits.

        Returns:
            The texts that the suspect will read, in order. A text with words must keep at least one.
        """
