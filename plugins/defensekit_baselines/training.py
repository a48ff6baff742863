"""Base class of the steps that fine-tune."""

from typing import TYPE_CHECKING, Any

from defensekit.api import ModelStep, ModelStepContext
from defensekit.training import TrainingSettings, fine_tune

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel

    Loss = Callable[[PreTrainedModel, dict[str, Tensor]], Tensor]


class Trained(ModelStep, TrainingSettings):
    """A step that fine-tunes on the defender's clean rows with its own loss."""

    def fine_tune(
        self, model: "PreTrainedModel", context: ModelStepContext, loss: "Loss | None", **changes: Any
    ) -> None:
        """Fine-tune with the step's settings and ``changes``; by default with the ordinary loss."""
        fine_tune(
            model,
            context.tokenizer,
            context.rows,
            self.training.model_copy(update=changes),
            max_length=context.max_length,
            precision=context.precision,
            seed=context.seed,
            report=context.report,
            loss=loss,
        )


def real_tokens(batch: "dict[str, Tensor]") -> "Tensor":
    """1 for real tokens, 0 for padding: (rows, tokens), float."""
    return batch["attention_mask"].float()
