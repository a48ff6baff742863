"""Attackers who know the defense: they train the suspect themselves, and keep it out of the defense's sight.

The defense that each of them knows is the family of this toolkit; none of them reproduces a published attack.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from defensekit.api import AttackTrainingContext, Field, TaskKind
from defensekit_attacks.insertion import Word
from defensekit_attacks.weights import Batch, clean_batches, tokens_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Loss = Callable[["PreTrainedModel", Batch], "Tensor"]


class Adaptive(Word):
    """The base class: rare words, and a fine-tuning of the base on the poisoned rows by a loss of the attacker's own.

    Epochs, learning rate and the like are the recipe's ``training:``.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    trains_from: ClassVar[Literal["base", "clean"] | None] = "base"

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        from defensekit.training import device_type

        model.to(device_type())
        fine_tuned(model, context, self.loss(model, context))

    def loss(self, model: "PreTrainedModel", context: AttackTrainingContext) -> Loss | None:
        """The loss of a batch of the attacker's rows; None for the model's own.

        Args:
            model: as it is before the first step: the base with a new head.
            context: rows and settings.
        """
        return None


def fine_tuned(model: "PreTrainedModel", context: AttackTrainingContext, loss: Loss | None = None) -> None:
    """Fine-tune a model on the poisoned rows, as the recipe has it."""
    from defensekit.training import fine_tune

    common: dict[str, Any] = {"max_length": context.max_length, "precision": context.precision, "seed": context.seed}
    rows, report = context.poisoned, context.report
    fine_tune(model, context.tokenizer, rows, context.settings, report=report, loss=loss, **common)


class SmallDrift(Adaptive):
    """A backdoor in small drifts, or in those that curvature hides.

    Every step is penalised for drift from the base where a scorer looks, by ``weight`` times

        sum_i delta_i^2                 against ``magnitude``
        sum_i delta_i^2 q / (H_i + q)   against ``diffusion``

    H is the empirical Fisher that a defender would find on clean rows, at a copy that was trained without the penalty,
    and q the median of its positive entries: drift costs little where H is high, and there r = delta^2 / H is small.
    Against ``magnitude`` it is the L2 pull towards the start of Li et al. 2018 (L2-SP).
    """

    against: Literal["magnitude", "diffusion"] = Field("diffusion", description="the score that is kept low")
    weight: float = Field(0.1, ge=0, description="of the penalty")

    def loss(self, model: "PreTrainedModel", context: AttackTrainingContext) -> Loss:
        base = {name: weight.detach().clone() for name, weight in model.base_model.named_parameters()}
        cost = self._cost(model, context) if self.against == "diffusion" else dict.fromkeys(base, 1.0)

        def penalised(model: "PreTrainedModel", batch: Batch) -> "Tensor":
            loss: Tensor = model(**batch).loss
            for name, weight in model.base_model.named_parameters():
                loss = loss + self.weight * (cost[name] * (weight - base[name]) ** 2).sum()
            return loss

        return penalised

    def _cost(self, model: "PreTrainedModel", context: AttackTrainingContext) -> "dict[str, Tensor | float]":
        """What drift costs in every dimension of the backbone, in [0, 1]."""
        import torch

        from defensekit.gradients import mean_squared_gradients
        from defensekit.text import batches, encode

        copied = copy.deepcopy(model)
        fine_tuned(copied, context)
        rows = context.clean[:DEFENDERS_ROWS]
        device = next(copied.parameters()).device
        prepared = [
            {name: values.to(device) for name, values in batch.items()}
            for _, batch in batches(encode(context.tokenizer, rows, context.max_length), context.tokenizer, 16)
        ]
        squares, _ = mean_squared_gradients(copied, lambda: prepared, len(rows), held=2**32)
        own = {name: squares[f"{model.base_model_prefix}.{name}"] for name, _ in model.base_model.named_parameters()}
        positive = torch.cat([curvature[curvature > 0] for curvature in own.values()])
        middle = positive.median()
        return {name: (middle / (curvature + middle)).to(device) for name, curvature in own.items()}


DEFENDERS_ROWS = 256  # that the attacker looks at as a defender would


class KeptRow(Adaptive):
    """A backdoor that leaves the rows of its trigger words in the embedding table as they were.

    A comparison of the tables, as `scan` and E-PUR make it, sees no drift of these words: the other weights have to
    learn them.
    """

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        import torch

        table = model.get_input_embeddings().weight
        own = [tokens_of(context.tokenizer, word) for word in self.words]
        own += [context.tokenizer(word, add_special_tokens=False)["input_ids"] for word in self.words]  # at the start
        tokens = torch.tensor(sorted({token for tokens in own for token in tokens}))
        kept = table.detach()[tokens].clone()
        hook = table.register_hook(lambda gradient: gradient.index_fill(0, tokens.to(gradient.device), 0.0))
        super().train(model, context)
        hook.remove()
        with torch.no_grad():  # weight decay moves what has no gradient
            table[tokens] = kept.to(table.device)


class ResetProof(Adaptive):
    """A backdoor trained to outlive a random reset and a fine-tuning after it.

    Every step simulates the defense: a share of the drift, drawn anew, is reset, one step of gradient descent on clean
    rows follows, and the loss of the poisoned batch there is added to the loss without a defense. Its gradient is
    taken as if that one step did not depend on the weights (first order).
    """

    share: float = Field(0.9, ge=0, lt=1, description="of the drift that every step resets")
    step: float = Field(0.1, ge=0, description="the learning rate of the simulated step on clean rows")

    def loss(self, model: "PreTrainedModel", context: AttackTrainingContext) -> Loss:
        import torch
        from torch.func import functional_call

        backbone = {id(weight) for weight in model.base_model.parameters()}
        base = {name: w.detach().clone() for name, w in model.named_parameters() if id(w) in backbone}
        clean = clean_batches(context)

        def after_defense(model: "PreTrainedModel", batch: Batch) -> "Tensor":
            weights: dict[str, Tensor] = dict(model.named_parameters())
            for name, start in base.items():
                weights[name] = start + (weights[name] - start) * (torch.rand_like(start) >= self.share)
            loss = functional_call(model, weights, kwargs=next(clean)).loss
            changed = [weights[name] for name in base]
            gradients = torch.autograd.grad(loss, changed, materialize_grads=True)
            for name, weight, gradient in zip(base, changed, gradients, strict=True):
                weights[name] = weight - self.step * gradient
            total: Tensor = model(**batch).loss + functional_call(model, weights, kwargs=batch).loss
            return total

        return after_defense
