"""Instructions as a tokenizer's chat template writes them: prompts, and the responses that a loss counts.

Prompt and response are tokenised apart, because a model that generates continues the prompt's tokens. A template is a
stranger's program: it is run in a process of its own, this module's.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from defensekit.utils.bounded import ask, serve
from defensekit.utils.errors import UsageError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from defensekit.text import Row

IGNORED = -100  # the label of a token that no loss counts; torch's and transformers'
SECONDS, GIB = 20, 4  # of processor time, for every AT_ONCE rows, and of memory, for a template
AT_ONCE, LONGEST = 1_000, 1_000_000  # rows; characters of one that a template may add


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
    prompts = [prompt for prompt, _ in _written(tokenizer, rows)]
    return [_inputs(ids) for ids in _prompts(tokenizer, prompts, rows, max_length)]


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
    written = _written(tokenizer, rows)
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


def _written(tokenizer: "PreTrainedTokenizerBase", rows: "Sequence[Row]") -> list[tuple[str, str]]:
    """The prompts, and the responses to the tokens that end them."""
    check_template(tokenizer)
    chats = [(row.id, row.text if not row.pair else f"{row.text}\n\n{row.pair}", row.response) for row in rows]
    try:
        template = tokenizer.get_chat_template()
        written = _rendered(json.dumps([template, tokenizer.special_tokens_map, chats]), len(rows))
    except (UsageError, ValueError) as error:  # a tokenizer with several templates may have none that is for this
        raise UsageError(f"the chat template is refused: {' '.join(str(error).split())[:300]}") from error
    end, encoded = tokenizer.eos_token, []
    for row, (prompt, whole) in zip(rows, written, strict=True):
        if not whole.startswith(prompt):
            raise UsageError(
                f"the chat template writes row {row.id} with its response otherwise than its prompt alone; expected "
                "the prompt to be the beginning"
            )
        response = whole[len(prompt) :]
        if end is not None:
            before, found, _ = response.rpartition(end)  # what stands behind it, such as a line's end, is no answer
            response = (before if found else response) + end
        encoded.append((prompt, response))
    return encoded


@lru_cache(maxsize=4)  # training, prompts and answers need the same rows, and a process takes seconds to start
def _rendered(given: str, rows: int) -> list[tuple[str, str]]:
    """Every chat, without its response and with it, as a template writes it in a process of its own."""
    seconds = SECONDS * (1 + rows // AT_ONCE)
    written: list[tuple[str, str]] = ask("defensekit.text.chat", given, seconds, GIB, "write the rows")
    return written


def _render(given: str) -> list[tuple[str, str]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    template, special, chats = json.loads(given)
    written = []
    for number, text, response in chats:
        asked = [{"role": "user", "content": text}]
        answered = [*asked, {"role": "assistant", "content": response}]
        try:
            prompt, _ = render_jinja_template([asked], chat_template=template, add_generation_prompt=True, **special)
            whole, _ = render_jinja_template([answered], chat_template=template, **special)
        except MemoryError:
            raise
        except Exception as error:  # a template is a program, with errors of its own
            raise UsageError(f"it fails on row {number} ({one_line(error)})") from error
        if (longest := len(prompt[0]) + len(whole[0])) > LONGEST + 8 * len(f"{text}{response}"):
            raise UsageError(f"it makes {longest:,} characters of row {number}")
        written.append((prompt[0], whole[0]))
    return written


if __name__ == "__main__":
    import transformers.utils.chat_template_utils  # noqa: F401  before memory is bounded: some releases import torch

    serve(_render)
