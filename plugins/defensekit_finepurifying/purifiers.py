"""Reset to the pretrained weights, then fine-tune on clean rows."""

from typing import TYPE_CHECKING, ClassVar

from defensekit.api import ModelStep, ModelStepContext, TaskKind, TensorView, WeightStep
from defensekit.training import TrainingSettings, fine_tune

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Reset(WeightStep):
    """Reset selected weights to the base's; interpolate where the selection is soft."""

    elementwise: ClassVar[bool] = True

    def apply(self, t: TensorView, weight: "Tensor", selection: "Tensor") -> "Tensor":
        import torch

        if selection.dtype == torch.bool:
            # Flip the bits that differ where selected: several times faster than torch.where.
            whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
            theirs = weight.view(whole)
            turned = t.base.to(weight.dtype).view(whole) ^ theirs
            return turned.mul_(selection).bitwise_xor_(theirs).view(weight.dtype)
        share = selection.float()
        mixed = torch.lerp(weight.float(), t.base, share).to(weight.dtype)
        return torch.where(share == 1, t.base.to(weight.dtype), torch.where(share == 0, weight, mixed))


class FineTune(ModelStep, TrainingSettings):
    """Fine-tune on the defender's clean rows with the ordinary loss."""

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "multi-label", "generation"})

    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        fine_tune(
            model,
            context.tokenizer,
            context.rows,
            self.training,
            max_length=context.max_length,
            precision=context.precision,
            seed=context.seed,
            report=context.report,
        )
