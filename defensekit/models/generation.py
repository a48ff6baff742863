"""What a causal language model answers to instructions, and how likely it finds their responses.

In float32, whatever a run's precision: in bfloat16 two tokens are often equally likely, and which of them comes first
would depend on the other rows of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from defensekit.models.causal import each_token
from defensekit.text import Row, batches, check_tokens, encode, padded
from defensekit.text.chat import encode_prompts, stops
from defensekit.utils.errors import DefenseKitError, running

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
    encoded, ends = _prompts(model, tokenizer, rows, max_length), stops(tokenizer, rows)
    with _deciding(model, tokenizer, new_tokens, ends), _padding_in_front(tokenizer):
        for indices, batch in batches(encoded, tokenizer, _ROWS, alike=_reads_padding(model, tokenizer, encoded)):
            batch = {name: values.to(model.device) for name, values in batch.items()}
            with running("the model"):
                ids = model.generate(**batch)[:, batch["input_ids"].shape[1] :]
            for index, tokens in zip(indices, ids.tolist(), strict=True):
                own = [*takewhile(lambda token: token not in ends, tokens)]
                answers[index] = Generated(tokenizer.decode(own, skip_special_tokens=True), len(own) < len(tokens))
            report(len(answers), len(rows))
    return [answers[index] for index in range(len(rows))]


def _prompts(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], max_length: int
) -> list[dict[str, list[int]]]:
    encoded = encode_prompts(tokenizer, rows, max_length)
    check_tokens(model, tokenizer, rows, encoded)
    return encoded


def _reads_padding(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", encoded: Sequence[dict[str, list[int]]]
) -> bool:
    """Whether a model's answer to the shortest prompt depends on padding in front of it, as recurrent models' may."""
    import torch

    shortest, longest = (pick(encoded, key=lambda row: len(row["input_ids"])) for pick in (min, max))
    if tokenizer.pad_token is None or len(shortest["input_ids"]) == len(longest["input_ids"]):
        return False

    def told(*rows: dict[str, list[int]]) -> "Tensor":
        batch = {name: values.to(model.device) for name, values in padded(rows, tokenizer).items()}
        config = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
        with running("the model"):
            shares: Tensor = model.generate(**batch, **config).logits[0][0].float().softmax(-1)
        return shares

    return not torch.allclose(told(shortest), told(shortest, longest), atol=1e-3)


def first_tokens(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], *, max_length: int
) -> "Tensor":
    """The probability of every token as the first of the answer to each instruction, (rows, vocabulary).

    Raises:
        UsageError: an instruction is longer than ``max_length``.
    """
    import torch

    shares: dict[int, Tensor] = {}
    takes = signature(model.forward).parameters
    with torch.inference_mode():
        for indices, batch in batches(_prompts(model, tokenizer, rows, max_length), tokenizer, _ROWS):
            batch = {name: values.to(model.device) for name, values in batch.items()}
            last = batch["attention_mask"].sum(1) - 1  # padding is behind the prompt
            # Of an output as long as the vocabulary no more positions than are asked for, where the model can do that.
            kept, places = torch.unique(last, return_inverse=True) if "logits_to_keep" in takes else (None, last)
            with running("the model"):
                logits = model(**batch, **({} if kept is None else {"logits_to_keep": kept})).logits
            own = logits[torch.arange(len(last)), places]
            shares.update(zip(indices, own.float().softmax(-1).cpu(), strict=True))
    return torch.stack([shares[index] for index in range(len(rows))])


@contextmanager
def _deciding(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", new_tokens: int, ends: list[int]
) -> Iterator[None]:
    """Within the block, `generate` takes the likeliest token, whatever the model's folder says of sampling."""
    import torch
    import transformers

    own, training = model.generation_config, model.training
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends or None,
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
            with running("the model"):
                losses, right, counted = each_token(model, {name: x.to(model.device) for name, x in batch.items()})
            measured["losses"][indices] = (losses * counted).double().sum(dim=1).cpu()
            measured["right"][indices] = (right & counted).sum(dim=1).cpu()
            measured["tokens"][indices] = counted.sum(dim=1).cpu()
            done += len(indices)
            report(done, len(rows))
    if not bool(torch.isfinite(measured["losses"]).all()):
        raise DefenseKitError("the model answers with NaN or infinity")
    return measured
