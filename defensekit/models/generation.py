"""What a causal language model answers to instructions, and how likely it finds their responses.

In float32, whatever a run's precision: in bfloat16 two tokens are often equally likely, and which of them comes first
would depend on the other rows of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from defensekit.models.causal import each_token
from defensekit.text import Row, batches, encode
from defensekit.text.chat import encode_prompts
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 64  # the most that an answer takes
_ROWS, _TOKENS = 32, 1024  # of a batch: rows that are answered together, tokens whose likelihood is measured together

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Generated:
    """An answer, and whether the model ended it or it was cut."""

    text: str
    ended: bool


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    max_length: int,
    new_tokens: int = NEW_TOKENS,
    report: Report = lambda done, total: None,
) -> list[Generated]:
    """The likeliest answer to every instruction, token by token, in the order of the rows.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a chat template.
        rows: the instructions.
        max_length: the most tokens that a prompt may take.
        new_tokens: the most tokens of an answer.
        report: ``report(done, total)`` shows progress.

    Raises:
        UsageError: an instruction is longer.
    """
    answers: dict[int, Generated] = {}
    encoded = encode_prompts(tokenizer, rows, max_length)
    with _deciding(model, tokenizer, new_tokens), _padding_in_front(tokenizer):
        for indices, batch in batches(encoded, tokenizer, _ROWS):
            batch = {name: values.to(model.device) for name, values in batch.items()}
            ids = model.generate(**batch)[:, batch["input_ids"].shape[1] :]
            for index, tokens in zip(indices, ids.tolist(), strict=True):
                ended = tokenizer.eos_token_id in tokens
                own = tokens[: tokens.index(tokenizer.eos_token_id)] if ended else tokens
                answers[index] = Generated(tokenizer.decode(own, skip_special_tokens=True), ended)
            report(len(answers), len(rows))
    return [answers[index] for index in range(len(rows))]


def first_tokens(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], *, max_length: int
) -> "Tensor":
    """The probability of every token as the first of the answer to each instruction, (rows, vocabulary).

    Raises:
        UsageError: an instruction is longer than ``max_length``.
    """
    import torch

    shares: dict[int, Tensor] = {}
    with torch.inference_mode():
        for indices, batch in batches(encode_prompts(tokenizer, rows, max_length), tokenizer, _ROWS):
            batch = {name: values.to(model.device) for name, values in batch.items()}
            states = model.base_model(**batch).last_hidden_state
            last = batch["attention_mask"].sum(1) - 1  # padding is behind the prompt
            logits = model.get_output_embeddings()(states[torch.arange(len(last)), last])
            shares.update(zip(indices, logits.float().softmax(-1).cpu(), strict=True))
    return torch.stack([shares[index] for index in range(len(rows))])


@contextmanager
def _deciding(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", new_tokens: int) -> Iterator[None]:
    """Within the block, `generate` takes the likeliest token, whatever the model's folder says of sampling."""
    import torch
    import transformers

    own, training = model.generation_config, model.training
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.generation_config = own
        model.train(training)


@contextmanager
def _padding_in_front(tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    """Within the block, the tokenizer pads on the left: every prompt ends where its answer begins."""
    own, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        yield
    finally:
        tokenizer.padding_side = own


def measure_responses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    max_length: int,
    report: Report = lambda done, total: None,
) -> "dict[str, Tensor]":
    """How likely a model finds each row's response, token by token, given the right ones before.

    Returns:
        Tensors (rows,): ``losses`` is the cross-entropy summed over the response's ``tokens``, ``right`` how many of
        these the model finds likeliest.

    Raises:
        DefenseKitError: a loss is NaN or infinite.
    """
    import torch

    measured: dict[str, Any] = {
        "losses": torch.zeros(len(rows), dtype=torch.float64),
        "tokens": torch.zeros(len(rows), dtype=torch.int64),
        "right": torch.zeros(len(rows), dtype=torch.int64),
    }
    done = 0
    with torch.inference_mode():
        for indices, batch in batches(encode(tokenizer, rows, max_length, model), tokenizer, _ROWS, _TOKENS):
            losses, right, counted = each_token(model, {name: x.to(model.device) for name, x in batch.items()})
            measured["losses"][indices] = (losses * counted).double().sum(dim=1).cpu()
            measured["right"][indices] = (right & counted).sum(dim=1).cpu()
            measured["tokens"][indices] = counted.sum(dim=1).cpu()
            done += len(indices)
            report(done, len(rows))
    if not bool(torch.isfinite(measured["losses"]).all()):
        raise DefenseKitError("the model answers with NaN or infinity")
    return measured
