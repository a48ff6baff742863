"""RAP: a word that shakes the answers to clean texts, and hardly those that a trigger holds up."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from defensekit.api import Detector, DetectorContext, Field
from defensekit.text import Row, batches, encode
from defensekit.training import forked_random

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WORD = "[perturbation]"


class RobustnessAwarePerturbation(Detector):
    """How little the probability of the suspect's answer falls when a word is put in front that was made to lower it.

    RAP (Yang et al., EMNLP 2021, arXiv 2110.07831): of a rare word the embedding row alone is trained, on clean rows
    of the label that the attacker is thought to aim at, until the word lowers that label's probability by an amount
    within bounds; the bounds of .1 and .3 are as we recall them. The score is the negative fall.

    Ours: nobody says what the target is, so every label has a word of its own, trained on the clean rows that the
    suspect answers with it, and a text gets the word of its answer. The word is a token that no text has, so it can't
    be the trigger. Outside the bounds the loss is the distance to them.
    """

    low: float = Field(0.1, ge=0, le=1, description="the least that the word should lower a probability by")
    high: float = Field(0.3, ge=0, le=1, description="the most")
    epochs: int = Field(5, ge=1, le=1000, description="passes over the clean rows")
    learning_rate: float = Field(1e-2, gt=0, le=1, description="of Adam, for the embedding row")
    batch_size: int = Field(32, ge=1, description="rows per step")

    def fit(self, context: DetectorContext) -> "dict[str, Tensor]":
        import torch

        before = context.logits(context.model("suspect"), context.rows).softmax(-1)
        model, given, number = _with_a_word(context)
        weight = model.get_input_embeddings().weight
        encoded = encode(given.tokenizer, _prefixed(context.rows), given.max_length)
        words = weight[:number].detach().mean(0).repeat(before.shape[1], 1)
        for label, start in enumerate(words):
            word = torch.nn.Parameter(start.clone())
            optimizer = torch.optim.Adam([word], lr=self.learning_rate)
            chosen = (before.argmax(-1) == label).nonzero()[:, 0]
            for epoch in range(self.epochs):
                for indices, batch in batches([encoded[i] for i in chosen], given.tokenizer, self.batch_size):
                    with torch.no_grad():
                        weight[number] = word
                    inputs = {name: values.to(weight.device) for name, values in batch.items() if name != "labels"}
                    after = model(**inputs).logits.float().softmax(-1)[:, label]
                    fall = before[chosen[indices], label].to(after.device) - after
                    loss = ((self.low - fall).clamp(min=0) + (fall - self.high).clamp(min=0)).mean()
                    word.grad = torch.autograd.grad(loss, weight)[0][number]
                    optimizer.step()
                context.report(label * self.epochs + epoch + 1, len(words) * self.epochs)
            words[label] = word.detach()
        return {"words": words}

    def score(self, rows: Sequence[Row], fitted: "Mapping[str, Tensor]", context: DetectorContext) -> "Tensor":
        import torch

        before = context.logits(context.model("suspect"), rows).softmax(-1)
        model, given, number = _with_a_word(context)
        scores, prefixed = torch.zeros(len(rows)), _prefixed(rows)
        for label, word in enumerate(fitted["words"]):
            chosen = (before.argmax(-1) == label).nonzero()[:, 0]
            with torch.no_grad():
                model.get_input_embeddings().weight[number] = word
            after = given.logits(model, [prefixed[i] for i in chosen]).softmax(-1)
            scores[chosen] = after[:, label] - before[chosen, label]
        return scores


def _with_a_word(context: DetectorContext) -> "tuple[PreTrainedModel, DetectorContext, int]":
    """The suspect with a token more, a context whose tokenizer knows it, and its row in the embedding."""
    tokenizer = copy.deepcopy(context.tokenizer)
    tokenizer.add_tokens(WORD)
    model, number = context.model("suspect"), tokenizer.convert_tokens_to_ids(WORD)
    size = len(model.get_input_embeddings().weight)
    with forked_random(context.seed):  # what a new row begins with is drawn, and written over
        model.resize_token_embeddings(max(size, number + 1), mean_resizing=False)
    return model, replace(context, tokenizer=tokenizer), number


def _prefixed(rows: Sequence[Row]) -> list[Row]:
    return [row.with_text(f"{WORD} {row.text}") for row in rows]
