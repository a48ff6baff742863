"""Instructions as a tokenizer's chat template writes them: prompts, and the responses that a loss counts.

Prompt and response are tokenised apart, because a model that generates continues the prompt's tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from defensekit.utils.errors import UsageError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from defensekit.text import Row

IGNORED = -100  # the label of a token that no loss counts; torch's and transformers'


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise UsageError where a tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise UsageError(
            "its tokenizer has no chat template, which writes an instruction as a prompt; expected one as "
            "chat_template.jinja, as instruction-tuned models have it"
        )


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", rows: "Sequence[Row]", max_length: int
) -> list[dict[str, list[int]]]:
    """Instructions as prompts that a model continues.

    Raises:
        UsageError: one leaves no room for a response, or the template fails.
    """
    return [
        _inputs(ids) for ids in _prompts(tokenizer, [_written(tokenizer, row)[0] for row in rows], rows, max_length)
    ]


def encode_chats(tokenizer: "PreTrainedTokenizerBase", rows: "Sequence[Row]", max_length: int) -> list[dict[str, Any]]:
    """Instructions with their responses, cut at ``max_length``; of the labels only the response's tokens count.

    The token that ends a response belongs to it.

    Raises:
        UsageError: an instruction leaves no room for a response, or the template fails.
    """
    encoded = []
    for prompt, response in _tokenised(tokenizer, rows, max_length):
        room = response[: max_length - len(prompt)]
        encoded.append({**_inputs(prompt + room), "labels": [IGNORED] * len(prompt) + room})
    return encoded


def count_cut(tokenizer: "PreTrainedTokenizerBase", rows: "Sequence[Row]", max_length: int) -> int:
    """How many responses `encode_chats` cuts: a model learns these without their end."""
    return sum(len(prompt) + len(response) > max_length for prompt, response in _tokenised(tokenizer, rows, max_length))


def _tokenised(
    tokenizer: "PreTrainedTokenizerBase", rows: "Sequence[Row]", max_length: int
) -> list[tuple[list[int], list[int]]]:
    """The tokens of every prompt, which is shorter than ``max_length``, and of its response."""
    written = [_written(tokenizer, row) for row in rows]
    prompts = _prompts(tokenizer, [prompt for prompt, _ in written], rows, max_length)
    responses = tokenizer([response for _, response in written], add_special_tokens=False)["input_ids"]
    return list(zip(prompts, responses, strict=True))


def _inputs(ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _prompts(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], rows: "Sequence[Row]", max_length: int
) -> list[list[int]]:
    prompts: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for row, ids in zip(rows, prompts, strict=True):
        if len(ids) >= max_length:
            raise UsageError(
                f"the instruction of row {row.id} takes {len(ids):,} tokens with the chat template, and "
                f"`max_length` is {max_length:,}: that leaves no room for a response (`max_words` of the data "
                "leaves long rows out)"
            )
    return prompts


def _written(tokenizer: "PreTrainedTokenizerBase", row: "Row") -> tuple[str, str]:
    """The prompt, and the response to the token that ends it."""
    check_template(tokenizer)
    turns = [{"role": "user", "content": row.text if not row.pair else f"{row.text}\n\n{row.pair}"}]
    answered = [*turns, {"role": "assistant", "content": row.response}]
    try:
        prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    except Exception as error:  # a template is a program, with errors of its own
        raise UsageError(f"the chat template fails on row {row.id} ({one_line(error)})") from error
    if not whole.startswith(prompt):
        raise UsageError(
            f"the chat template writes row {row.id} with its response otherwise than its prompt alone; expected the "
            "prompt to be the beginning"
        )
    response, end = whole[len(prompt) :], tokenizer.eos_token
    if end is None:
        return prompt, response
    before, found, _ = response.rpartition(end)  # what a template writes behind it, such as a line's end, is no answer
    return prompt, (before if found else response) + end
