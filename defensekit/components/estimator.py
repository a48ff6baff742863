"""Estimators: statistics per parameter, measured on clean data."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from defensekit.components.base import Component

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from defensekit.gradients import Loss
    from defensekit.text import Row


@dataclass(frozen=True)
class EstimatorContext:
    """What an estimator may look at: the models, the defender's clean rows, and nothing of the attack.

    ``model("suspect")`` loads the suspect; ``model("base")`` the base's weights under the suspect's head.
    ``report(done, total)`` feeds the progress display. ``loss(model, batch)`` is the loss of every row, (N,), as
    `defensekit.gradients` takes it; None for a classifier, whose loss is the cross-entropy of its labels.
    """

    model: "Callable[[Literal['suspect', 'base']], PreTrainedModel]"
    tokenizer: "PreTrainedTokenizerBase"
    rows: "Sequence[Row]"
    max_length: int
    seed: int
    report: Callable[[int, int], None]
    loss: "Loss | None" = None

    def batches(
        self, model: "PreTrainedModel", size: int | None = None, tokens: int | None = None
    ) -> "Iterator[tuple[list[int], dict[str, Tensor]]]":
        """The rows as padded batches of similar length on the model's device, with ``labels``, each with the places of
        its rows; at most ``size`` rows and ``tokens`` padded tokens a batch."""
        from defensekit.text import batches, encode

        encoded = encode(self.tokenizer, self.rows, self.max_length)
        for indices, batch in batches(encoded, self.tokenizer, size or len(encoded), tokens):
            yield indices, {name: values.to(model.device) for name, values in batch.items()}


@dataclass(frozen=True)
class Estimate:
    """``statistics[statistic][parameter]`` is a float32 tensor of the parameter's shape, for the parameters that the
    statistic says something about; ``facts`` are plain numbers worth showing to a person."""

    statistics: "dict[str, dict[str, Tensor]]"
    facts: dict[str, Any] = field(default_factory=dict)


class Estimator(Component):
    """Measures a statistic per parameter on clean data.

    One that measures with ``context.loss`` wherever it is given says ``any_loss = True``: it is then used for causal
    language models as well.
    """

    kind: ClassVar[str] = "estimator"
    provides: ClassVar[frozenset[str]] = frozenset()
    any_loss: ClassVar[bool] = False

    @abstractmethod
    def estimate(self, context: EstimatorContext) -> Estimate:
        """Measure everything in ``provides``."""
