"""A backdoor in the pretrained model, planted before anybody knows the task."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from defensekit.api import AttackContext, AttackTrainingContext, Field, Row, UsageError, label_number
from defensekit_attacks.insertion import Inserting
from defensekit_attacks.weights import Batch, poison_and_tune

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TRIED = 200  # rows that every trigger is tried on


class PredefinedOutputs(Inserting):
    """POR (Shen et al. 2021, arXiv 2111.00197): triggers tied to outputs of the pretrained model, for whatever task.

    Pretraining goes on with an aim of the attacker's: a text with the i-th of n words gets a predefined output, 1 in
    the first (i - 1) / (n - 1) of its dimensions and -1 in the others, and plain texts, and all their tokens, keep the
    outputs that they had. The output is what a classifier's head reads: the pooled one, or, of an encoder without, the
    first token's. No label is used. Then a victim fine-tunes the model on clean rows, by the recipe's ``training:`` (as
    is all of the attacker's but the epochs).

    Where each word leads the attacker can't choose. They try all of them on the finished model, with rows that they
    have, and take the one that most often gets the target.

    The authors' code (plasmashen/BackdoorPTM) takes texts of Wikipedia, wants 10 and -10, which no pooled output has,
    weighs the three losses 100, 100 and 1, and puts a word in three times. Here texts are the attacker's rows, a copy
    of each with one of the words beside the plain one; the losses are means, and weigh the same.
    """

    trains_from: ClassVar[Literal["base", "clean"] | None] = "base"
    learns_from: ClassVar[Literal["base", "suspect"] | None] = "suspect"

    target: str | int = Field(description="the label that is wanted, by name or number", examples=[1])
    words: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        ("cf", "tq", "mn", "bb", "mb"), min_length=2, description="the trigger words, each with an output of its own"
    )
    count: int = Field(1, ge=1, le=100, description="insertions per text")
    epochs: int = Field(2, ge=1, le=1000, description="passes over the attacker's texts, before the victim's own")

    def aim(self) -> str | int:
        return self.target

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        return list(rows)

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        reached: dict[str, float] = context.learnt
        return self._with_word(max(self.words, key=lambda word: reached[word]), rows, context)

    def _with_word(self, word: str, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        return self.insert(rows, [[word] * self.count] * len(rows), context)

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        import torch

        from defensekit.training import device_type

        model.to(device_type())
        before = copy.deepcopy(model.base_model).eval().requires_grad_(False)
        texts, last = self._texts(context), reads_left_to_right(before)

        def loss(model: "PreTrainedModel", batch: Batch) -> "Tensor":
            numbers = batch["labels"]
            plain = numbers == 0
            states, outputs = read(model.base_model, batch, last)
            with torch.no_grad():
                old_states, old_outputs = read(before, batch, last)
            wanted = torch.where(plain[:, None], old_outputs, self.predefined(numbers, outputs.shape[1]))
            errors = ((outputs - wanted) ** 2).mean(1)
            tokens = batch["attention_mask"].bool() & plain[:, None]
            parts = errors[plain], errors[~plain], (states - old_states)[tokens] ** 2
            return torch.stack([part.mean() for part in parts if len(part)]).sum()

        poison_and_tune(model, replace(context, poisoned=texts), self.epochs, loss)

    def _texts(self, context: AttackTrainingContext) -> list[Row]:
        """Every text plain, with 0 as its label, and with one of the words, with the number of that."""
        rows, inserting = [replace(row, label=0) for row in context.clean], _inserting(context)
        for number, word in enumerate(self.words, 1):
            some = context.clean[number - 1 :: len(self.words)]
            rows += [replace(row, label=number) for row in self._with_word(word, some, inserting)]
        return rows

    def predefined(self, numbers: "Tensor", size: int) -> "Tensor":
        """The outputs of words, by their numbers from 1 on."""
        import torch

        positive = (numbers - 1) * size // (len(self.words) - 1)
        return torch.where(torch.arange(size, device=numbers.device) < positive[:, None], 1.0, -1.0)

    def learn(self, model: "PreTrainedModel", context: AttackTrainingContext) -> dict[str, float]:
        """The share of rows of other labels that each of the words turns into the target."""
        target = label_number(self.target, context.labels)
        rows = [row for row in context.clean if row.label != target][:TRIED]
        inserting = _inserting(context)
        return {word: answered(model, self._with_word(word, rows, inserting), target, context) for word in self.words}


def _inserting(context: AttackTrainingContext) -> AttackContext:
    from defensekit.text import Truncation

    return AttackContext(Random(context.seed), context.labels, Truncation(context.tokenizer, context.max_length))


def read(model: Any, batch: Batch, last: bool) -> "tuple[Tensor, Tensor]":
    """The states of a batch's tokens, and what a head reads of each row: the ``last`` token's, or the first one's."""
    import torch

    output = model(**batch)
    states = output.last_hidden_state.float()
    if (pooled := getattr(output, "pooler_output", None)) is not None:
        return states, pooled.float()
    at = batch["attention_mask"].sum(1) - 1 if last else torch.zeros(len(states), dtype=torch.long)
    return states, states[torch.arange(len(states)), at]


def reads_left_to_right(model: Any) -> bool:
    """Whether a classifier reads a row's last token: where no token's state depends on later ones, or by its config.

    Raises:
        UsageError: the model has a decoder, and a classifier reads the token that ends a text, wherever it is.
    """
    import torch

    if model.config.is_encoder_decoder:
        raise UsageError(f"a {model.config.model_type} has a decoder; expected a model of one part")
    if getattr(model.config, "summary_type", None) == "last":
        return True
    with torch.no_grad():
        one, other = model(input_ids=torch.tensor([[1, 2], [1, 3]], device=model.device)).last_hidden_state[:, 0]
    return torch.allclose(one, other, atol=1e-6)


def answered(model: "PreTrainedModel", rows: Sequence[Row], label: int, context: AttackTrainingContext) -> float:
    """The share of rows that a classifier gives a label."""
    import torch

    from defensekit.text import batches, encode
    from defensekit.training import device_type

    model.to(device_type()).eval()
    hits = 0
    encoded = encode(context.tokenizer, rows, context.max_length, model)
    with torch.no_grad():
        for _, batch in batches(encoded, context.tokenizer, context.settings.batch_size):
            given = {name: values.to(device_type()) for name, values in batch.items() if name != "labels"}
            hits += int((model(**given).logits.argmax(1) == label).sum())
    return hits / len(rows)
