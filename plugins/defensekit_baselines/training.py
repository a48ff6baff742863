"""What the training steps here share."""

from typing import TYPE_CHECKING, Any

from defensekit.api import ModelStep, ModelStepContext
from defensekit.training import TrainingSettings, fine_tune

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel

    Loss = Callable[[PreTrainedModel, dict[str, Tensor]], Tensor]


class Trained(ModelStep, TrainingSettings):
    """A step that fine-tunes on the defender's clean rows with a loss of its own."""

    def fine_tune(
        self, model: "PreTrainedModel", context: ModelStepContext, loss: "Loss | None", **changes: Any
    ) -> None:
        """Fine-tune by the step's settings, some of them changed; without a loss, with the ordinary one."""
        own = self.model_dump(include=set(TrainingSettings.model_fields))
        fine_tune(
            model,
            context.tokenizer,
            context.rows,
            TrainingSettings.model_validate(own | changes),
            max_length=context.max_length,
            precision=context.precision,
            seed=context.seed,
            report=context.report,
            loss=loss,
        )


def real_tokens(batch: "dict[str, Tensor]") -> "Tensor":
    """1 where a token is no padding, 0 elsewhere: (rows, tokens), float."""
    return batch["attention_mask"].float()
