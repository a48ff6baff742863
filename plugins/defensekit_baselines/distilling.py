"""Neural Attention Distillation."""

import copy
from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Field, ModelStepContext, TaskKind
from defensekit_baselines.training import Trained, real_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class AttentionDistillation(Trained):
    """NAD (Li et al., ICLR 2021): the suspect, fine-tuned on clean rows, teaches the suspect where to look.

        L = CE + beta * sum over layers of MSE(A(student), A(teacher)),  A = sum over channels of |h|^p, at norm 1

    p and beta are those of the authors' code (bboylyg/NAD; beta is 500, 1000, 1000 for its three blocks). There A is a
    map over the pixels of an image, of three blocks of a convolutional network; here it is one over the tokens of a
    row, of every layer, padding left out. The learning rate there is 0.1, for SGD.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "multi-label", "generation"})

    beta: float = Field(1000.0, ge=0, description="the weight of every layer's term")
    power: float = Field(2.0, gt=0, description="p")
    teacher_epochs: int = Field(3, ge=1, le=1000, description="passes over the clean rows that make the teacher")

    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        teacher = copy.deepcopy(model)
        self.fine_tune(teacher, context, None, epochs=self.teacher_epochs)
        teacher.requires_grad_(False)
        self.fine_tune(model, context, lambda student, batch: self.loss(student, teacher, batch))

    def loss(self, student: "PreTrainedModel", teacher: "PreTrainedModel", batch: "dict[str, Tensor]") -> "Tensor":
        """The loss of a batch."""
        import torch

        ours, theirs = (model(**batch, output_hidden_states=True) for model in (student, teacher))
        apart = [
            torch.nn.functional.mse_loss(self.look(mine, batch), self.look(other, batch))
            for mine, other in zip(ours.hidden_states[1:], theirs.hidden_states[1:], strict=True)
        ]
        loss: Tensor = ours.loss + self.beta * torch.stack(apart).sum()
        return loss

    def look(self, states: "Tensor", batch: "dict[str, Tensor]") -> "Tensor":
        """The attention map of (rows, tokens, channels): (rows, tokens), each row at norm 1, 0 on padding."""
        sizes = states.float().abs().pow(self.power).sum(-1) * real_tokens(batch)
        attention: Tensor = sizes / (sizes.norm(dim=1, keepdim=True) + 1e-6)
        return attention
