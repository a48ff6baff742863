"""Detectors: how suspicious every text is that the suspect is asked about."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from defensekit.components.base import Component
from defensekit.text import TaskKind

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from defensekit.text import Row


@dataclass(frozen=True)
class DetectorContext:
    """What a detector may use besides the texts: models and the defender's clean rows, but no data of the attack.

    Attributes:
        model: ``model("suspect")`` loads the suspect, ``model("base")`` the base's weights with the suspect's head,
            ``model("purified")`` what the recipe's defense made of the suspect without a dev row, for a detector that
            ``reads_purified``.
        tokenizer: the suspect's tokenizer.
        rows: the defender's clean rows, with their labels. Thresholds are set on other clean rows.
        max_length: tokens at which rows are cut.
        precision: of answers: ``float32``, or ``bfloat16`` for autocast.
        seed: the seed of all random numbers.
        report: ``report(done, total)`` shows progress.
        language_model: loads the causal model that the recipe names, in float32 and eval mode on the device, and its
            tokenizer, for a detector that ``reads_with_language_model``.
        positions: how many tokens the language model can read; None where there is no limit.
    """

    model: "Callable[[Literal['suspect', 'base', 'purified']], PreTrainedModel]"
    tokenizer: "PreTrainedTokenizerBase"
    rows: "Sequence[Row]"
    max_length: int
    precision: Literal["float32", "bfloat16"]
    seed: int
    report: Callable[[int, int], None]
    language_model: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]"
    positions: int | None

    def logits(self, model: "PreTrainedModel", rows: "Sequence[Row]") -> "Tensor":
        """A model's answers to rows.

        Args:
            model: the model, of which there is one for any number of calls.
            rows: the rows; their labels don't matter.

        Returns:
            Logits, (rows, labels), float32, on the CPU.
        """
        from defensekit.models.inference import predict

        length, precision = self.max_length, self.precision
        return predict(model, self.tokenizer, rows, max_length=length, precision=precision, report=self.report)

    def features(self, model: "PreTrainedModel", rows: "Sequence[Row]") -> "tuple[Tensor, Tensor, Tensor]":
        """A model's answers to rows, what its head reads of them, and the last layer's state of a token.

        Args:
            model: the model.
            rows: the rows; their labels don't matter.

        Returns:
            Logits, (rows, labels); what the last linear layer reads, (rows, width); the state, before it is pooled, of
            the token that the classifier reads, (rows, width). All float32, on the CPU.
        """
        from defensekit.models.inference import features

        length, precision = self.max_length, self.precision
        return features(model, self.tokenizer, rows, max_length=length, precision=precision, report=self.report)


class Detector(Component):
    """Says how suspicious every text is: a text whose score is above a threshold is not answered.

    It is not told labels, and not whether a text carries a trigger. The score of a text must not depend on the other
    texts, since in use there may be only one. The threshold is not its business: it is set on held-out clean rows.

    Attributes:
        reads_purified: whether it compares the suspect with the purified model, which a defense of inputs has not.
        reads_with_language_model: whether the recipe has to name a causal language model, under ``model:``.
    """

    kind: ClassVar[str] = "detector"
    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    reads_purified: ClassVar[bool] = False
    reads_with_language_model: ClassVar[bool] = False

    def fit(self, context: DetectorContext) -> "Mapping[str, Tensor]":
        """Learn from the clean rows what `score` has to know, once for all texts.

        Args:
            context: models and clean rows.

        Returns:
            Tensors by name.
        """
        return {}

    @abstractmethod
    def score(
        self, rows: "Sequence[Row]", fitted: "Mapping[str, Tensor]", context: DetectorContext
    ) -> "Sequence[float] | Tensor":
        """Score every text.

        Args:
            rows: the texts (or pairs of texts), as rows whose ``label`` is -1: it is not known.
            fitted: what `fit` returned.
            context: models and clean rows.

        Returns:
            A finite number for each row, in order; the higher, the more suspicious.
        """
