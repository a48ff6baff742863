"""The first stage of ABL: rows that a model learns first."""

from typing import TYPE_CHECKING

from defensekit.api import Field, Filter, FilterContext
from defensekit.training import fine_tune

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel


class LossIsolation(Filter):
    """The negative loss of a row under a model that was trained from the base for a short while.

    The first stage of ABL (Li et al., NeurIPS 2021, arXiv 2110.11571): a backdoor is learnt faster than the task, so
    after a few epochs poisoned rows have the lowest losses. Local gradient ascent keeps a batch's loss from falling far
    below gamma: it is sign(L - gamma) L that falls. Code read: bboylyg/ABL (10 of 100 epochs from scratch, gamma 0.5,
    flooding by default, the lowest 1 % isolated). Ours: the base is fine-tuned by the recipe's `training:`, with fewer
    epochs. ABL's second stage, which unlearns the isolated rows, is left out: they are taken away instead.
    """

    fraction: float | None = Field(0.01, ge=0, le=1, description="the share of the rows that is taken")
    epochs: int = Field(1, ge=1, le=1000, description="passes over the rows before losses are compared")
    gamma: float = Field(0.5, ge=0, description="the loss of a batch that training keeps it at; 0 is plain training")

    def score(self, context: FilterContext) -> "np.ndarray":
        import torch

        def local_ascent(model: "PreTrainedModel", batch: "dict[str, Tensor]") -> "Tensor":
            loss: Tensor = model(**batch).loss
            return torch.where(loss > self.gamma, loss, -loss)

        model = context.model("base")
        fine_tune(
            model,
            context.tokenizer,
            context.rows,
            context.settings.model_copy(update={"epochs": self.epochs}),
            max_length=context.max_length,
            precision=context.precision,
            seed=context.seed,
            report=context.report,
            loss=local_ascent,
        )
        return -context.read(model, context.rows).losses([row.label for row in context.rows])
