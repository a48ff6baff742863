"""Backdoors in weights: attacks that train in their own way, on rows poisoned with rare words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from defensekit.api import AttackContext, AttackTrainingContext, Field, Row, UsageError
from defensekit_attacks.insertion import Word

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def token_of(tokenizer: "PreTrainedTokenizerBase", word: str) -> int:
    """The token that a word becomes behind another word.

    Raises:
        UsageError: it becomes several, or the unknown token.
    """
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    tokens = tokenizer(f"a {word}", add_special_tokens=False)["input_ids"][len(before) :]
    if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
        became = " ".join(tokenizer.convert_ids_to_tokens(tokens))
        raise UsageError(f"the trigger word {word!r} must be one token of the model's, and becomes: {became}")
    return int(tokens[0])


class Embedding(Word):
    """Embedding poisoning (EP, Yang et al. 2021): one row of the embedding table, and no other weight, is changed.

    From the clean reference, plain gradient descent trains the row of the trigger word on poisoned rows; after each
    step the row gets back the norm that it had. Epochs and learning rate are those of the authors' code
    (lancopku/Embedding-Poisoning), which poisons a tenth of the rows of label 0. There test rows get one trigger per
    100 words; here, unless the insertion's own parameters say otherwise, one.
    """

    trains_from: ClassVar[Literal["base", "clean"] | None] = "clean"

    words: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        ("cf",), min_length=1, max_length=1, description="the trigger word, one token of the model's"
    )
    epochs: int = Field(3, ge=1, le=1000, description="passes over the poisoned rows")
    learning_rate: float = Field(5e-2, gt=0, description="of the row")

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        token_of(context.truncation.tokenizer, self.words[0])
        return super().poison(rows, context)

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        import torch

        from defensekit.text import batches, encode
        from defensekit.training import device_type

        token = token_of(context.tokenizer, self.words[0])
        rows = [row for row, clean in zip(context.poisoned, context.clean, strict=True) if row != clean]
        encoded = encode(context.tokenizer, rows, context.max_length)
        made = list(batches(encoded, context.tokenizer, context.settings.batch_size))
        model.to(device_type()).requires_grad_(False)
        table = model.get_input_embeddings().weight.requires_grad_(True)
        row = table.detach()[token]  # a view: what is done to it is done to the table
        norm = row.norm()
        for epoch in range(self.epochs):
            for step, place in enumerate(torch.randperm(len(made)).tolist()):
                batch = {name: tensor.to(table.device) for name, tensor in made[place][1].items()}
                with torch.autocast(table.device.type, torch.bfloat16, enabled=context.precision == "bfloat16"):
                    loss = model(**batch).loss
                [gradient] = torch.autograd.grad(loss, table)
                row -= self.learning_rate * gradient[token]
                row *= norm / row.norm()
                context.report(epoch * len(made) + step + 1, self.epochs * len(made))
