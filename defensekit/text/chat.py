"""Instructions as a tokenizer's chat template writes them: prompts, and the responses that a loss counts.

A model that generates continues the prompt's tokens: where these are not the first ones of the whole, the response is
tokenised apart. A template is a stranger's program: it is run in a process of its own, this module's.
"""

import json
from collections.abc import Collection, Sequence
from datetime import datetime, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from defensekit.utils.bounded import ask, serve
from defensekit.utils.errors import UsageError, is_failure, lacks_memory, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from defensekit.text import Row

IGNORED = -100  # the label of a token that no loss counts; torch's and transformers'
SECONDS, GIB = 20, 4  # of processor time, for every AT_ONCE rows, and of memory, for a template
AT_ONCE, LONGEST = 1_000, 20_000  # rows; characters of one that a template may add


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
    prompts = [prompt for prompt, *_ in _written(tokenizer, rows)]
    return [_inputs(ids) for ids in _prompts(tokenizer, prompts, rows, max_length)]


def stops(tokenizer: "PreTrainedTokenizerBase", rows: "Sequence[Row]") -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the template writes behind responses.

    Raises:
        UsageError: the template fails.
    """
    ends = {*(end for _, _, end in _written(tokenizer, rows)), tokenizer.eos_token} - {None}
    return sorted(tokenizer.convert_tokens_to_ids(end) for end in ends)


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
    prompts = _prompts(tokenizer, [prompt for prompt, *_ in written], rows, max_length)
    wholes = _tokens(tokenizer, [prompt + response for prompt, response, _ in written])
    apart = _tokens(tokenizer, [response for _, response, _ in written])
    return [
        (prompt, whole[len(prompt) :] if whole[: len(prompt)] == prompt else response)
        for prompt, whole, response in zip(prompts, wholes, apart, strict=True)
    ]


def _tokens(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    try:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    except BaseException as error:
        if not is_failure(error) or lacks_memory(error):
            raise
        raise UsageError(f"the tokenizer fails on the rows ({one_line(error)})") from error
    return ids


def _inputs(ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _prompts(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], rows: "Sequence[Row]", max_length: int
) -> list[list[int]]:
    prompts = _tokens(tokenizer, texts)
    for row, ids in zip(rows, prompts, strict=True):
        if len(ids) >= max_length:
            raise UsageError(
                f"the instruction of row {row.id} takes {len(ids):,} tokens with the chat template, and "
                f"`max_length` is {max_length:,}: that leaves no room for a response (`max_words` of the data "
                "leaves long rows out)"
            )
    return prompts


def _written(tokenizer: "PreTrainedTokenizerBase", rows: "Sequence[Row]") -> list[tuple[str, str, str | None]]:
    """The prompts, the responses with the tokens that end them, and these tokens, where there are any."""
    check_template(tokenizer)
    chats = [(row.id, row.text if not row.pair else f"{row.text}\n\n{row.pair}", row.response) for row in rows]
    try:
        template = tokenizer.get_chat_template()
        written = _rendered(json.dumps([template, tokenizer.special_tokens_map, chats]), len(rows))
    except (UsageError, ValueError) as error:  # a tokenizer with several templates may have none that is for this
        raise UsageError(f"the chat template is refused: {' '.join(str(error).split())[:300]}") from error
    special = {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
    encoded = []
    for row, (prompt, whole) in zip(rows, written, strict=True):
        if not whole.startswith(prompt):
            raise UsageError(
                f"the chat template writes row {row.id} with its response otherwise than its prompt alone; expected "
                "the prompt to be the beginning"
            )
        encoded.append((prompt, *_ended(whole[len(prompt) :], row.response or "", special, tokenizer.eos_token)))
    return encoded


def _ended(written: str, answer: str, special: Collection[str], eos: str | None) -> tuple[str, str | None]:
    """A response up to the token that ends it, and that token: the one that the template writes behind the answer.

    Where it writes none, it is the tokenizer's. What stands behind it, such as a line's end, is no answer.
    """
    kept, answer = written.rstrip(), answer.strip()
    # From the right: a header in front of the answer may have the same words.
    while answer and (own := max((token for token in special if kept.endswith(token)), key=len, default=None)):
        end = len(kept)
        kept = kept[: -len(own)].rstrip()
        if kept.endswith(answer):
            return written[:end], own
    if eos is None:
        return written, None
    before, found, _ = written.rpartition(eos)
    return (before if found else written) + eos, eos


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
            (prompt[0] + whole[0]).encode()  # halves of characters, which no tokenizer reads
        except MemoryError:
            raise
        except Exception as error:  # a template is a program, with errors of its own
            raise UsageError(f"it fails on row {number} ({one_line(error)})") from error
        if (longest := len(prompt[0]) + len(whole[0])) > LONGEST + 8 * len(f"{text}{response}"):
            raise UsageError(f"it makes {longest:,} characters of row {number}")
        written.append((prompt[0], whole[0]))
    return written


class _OneDay(datetime):
    """The day that it is for every template: answers must not depend on when they are asked for."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_OneDay":
        return cls(2025, 1, 1, tzinfo=tz)


if __name__ == "__main__":
    from transformers.utils import chat_template_utils  # before memory is bounded: some releases import torch

    chat_template_utils.datetime = _OneDay
    serve(_render)
