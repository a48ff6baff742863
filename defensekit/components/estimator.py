"""Estimators: statistics for every weight, measured on clean data."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from defensekit.components.base import Component

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from defensekit.gradients import Loss
    from defensekit.text import Row, TaskKind


@dataclass(frozen=True)
class EstimatorContext:
    """What an estimator may use: the models and the defender's clean rows, but no data of the attack.

    Attributes:
        model: ``model("suspect")`` loads the suspect, ``model("base")`` the base's weights with the suspect's head.
        tokenizer: the suspect's tokenizer.
        rows: the defender's clean rows.
        max_length: tokens at which rows are cut.
        seed: the seed of all random numbers.
        report: ``report(done, total)`` shows progress.
        loss: ``loss(model, batch)`` gives the loss of every row, (N,), for `defensekit.gradients`; None for rows with
            one label each, whose loss is the cross-entropy.
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
        """The rows as padded batches of similar length, on the model's device, with ``labels``.

        Args:
            model: the model that will read them.
            size: the largest number of rows of a batch; None for all rows.
            tokens: the largest number of padded tokens of a batch; None for no limit.

        Yields:
            The indices of a batch's rows in ``rows``, and the batch.
        """
        from defensekit.text import batches, encode

        encoded = encode(self.tokenizer, self.rows, self.max_length)
        for indices, batch in batches(encoded, self.tokenizer, size or len(encoded), tokens):
            yield indices, {name: values.to(model.device) for name, values in batch.items()}


@dataclass(frozen=True)
class Estimate:
    """The statistics that an estimator measured.

    Attributes:
        statistics: ``statistics[statistic][parameter]`` is a float32 tensor of the parameter's shape, for those
            parameters that have the statistic.
        facts: numbers to show to the user, as JSON values.
    """

    statistics: "dict[str, dict[str, Tensor]]"
    facts: dict[str, Any] = field(default_factory=dict)


class Estimator(Component):
    """Measures statistics for every weight on clean data.

    Attributes:
        provides: the names of the statistics.
        any_loss: True for an estimator that uses ``context.loss`` where it is given, or no loss at all, and so works
            for causal language models, and for rows with lists of labels, as well.
    """

    kind: ClassVar[str] = "estimator"
    provides: ClassVar[frozenset[str]] = frozenset()
    any_loss: ClassVar[bool] = False

    @classmethod
    def works_for(cls, task: "TaskKind") -> bool:
        """Whether it works for a kind of task."""
        return cls.any_loss or task == "classification"

    @abstractmethod
    def estimate(self, context: EstimatorContext) -> Estimate:
        """Measure the statistics.

        Args:
            context: the models and the clean rows.

        Returns:
            Every statistic in ``provides``, finite.
        """
