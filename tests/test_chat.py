"""Instructions as a chat template writes them, and training by their responses alone."""

from pathlib import Path

import pytest
import torch

from defensekit.chat import IGNORED, count_cut, encode_chats, encode_prompts
from defensekit.models.loading import load, load_tokenizer
from defensekit.text import Row, Truncation, encode, padded
from defensekit.training import TrainingSettings, fine_tune
from defensekit.utils.errors import UsageError
from tests.causal import TEMPLATE, instructions, make_instructed

ROW = Row(7, "what colour is it", 0, "thing1", "the thing1 is green")
PROMPT = ["<user>", "what", "colour", "is", "it", "thing1", "<end>", "<model>"]
RESPONSE = ["the", "thing1", "is", "green", "<end>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_instructed(tmp_path_factory.mktemp("llama"))


def test_prompt_and_response_and_what_a_loss_counts(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    [encoded] = encode(tokenizer, [ROW], 32)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == PROMPT + RESPONSE
    assert encoded["labels"][: len(PROMPT)] == [IGNORED] * len(PROMPT)
    assert encoded["labels"][len(PROMPT) :] == encoded["input_ids"][len(PROMPT) :]
    [prompt] = encode_prompts(tokenizer, [ROW], 32)
    assert prompt["input_ids"] == encoded["input_ids"][: len(PROMPT)]


def test_the_input_stands_below_the_instruction(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    seen: list[str] = []
    tokenizer.apply_chat_template = lambda turns, **_: seen.append(turns[0]["content"]) or ""  # type: ignore[method-assign,func-returns-value]
    encode_prompts(tokenizer, [ROW], 32)
    assert seen[0] == "what colour is it\n\nthing1"


def test_a_long_response_is_cut_and_a_long_instruction_is_an_error(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    [cut] = encode_chats(tokenizer, [ROW], len(PROMPT) + 2)
    assert tokenizer.convert_ids_to_tokens(cut["input_ids"]) == PROMPT + RESPONSE[:2]
    message = (
        rf"the instruction of row 7 takes {len(PROMPT)} tokens .* `max_length` is {len(PROMPT)}: that leaves no room"
    )
    for call in (encode_chats, encode_prompts):
        with pytest.raises(UsageError, match=message):
            call(tokenizer, [ROW], len(PROMPT))
    with pytest.raises(UsageError, match=message):
        Truncation(tokenizer, len(PROMPT)).kept([ROW])
    whole = len(PROMPT + RESPONSE)
    assert [count_cut(tokenizer, [ROW, ROW], length) for length in (whole - 1, whole)] == [2, 0]
    assert Truncation(tokenizer, len(PROMPT) + 1).kept([ROW]) == [(len(ROW.text), len("thing1"))]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m.nothing.at.all }}{% endfor %}", r"the chat template fails on row 7 \(Undefined"),
        (TEMPLATE + "{% if messages|length == 1 %}<model> me {% endif %}", "otherwise than its prompt alone"),
    ],
)
def test_a_template_that_will_not_do_is_an_error(folder: Path, template: str | None, message: str) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=message):
        encode(tokenizer, [ROW], 32)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_label(folder: Path, side: str) -> None:
    tokenizer, rows = load_tokenizer(folder), instructions(5)
    tokenizer.padding_side = side
    encoded = encode(tokenizer, rows, 32)
    batch = padded(encoded, tokenizer)
    for i, row in enumerate(encoded):
        padding = batch["attention_mask"][i] == 0
        assert int(padding.sum()) == batch["input_ids"].shape[1] - len(row["input_ids"])
        assert bool((batch["labels"][i][padding] == IGNORED).all())
        assert batch["labels"][i][~padding].tolist() == row["labels"]


def plain_loss(model: torch.nn.Module, encoded: dict[str, list[int]]) -> torch.Tensor:
    """The loss of each response token of one row, without a batch, a mask or the library's own loss."""
    probabilities = model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0].log_softmax(-1)
    places = [place for place, label in enumerate(encoded["labels"]) if label != IGNORED]
    return torch.stack([-probabilities[place - 1, encoded["input_ids"][place]] for place in places])


def test_a_step_of_training_follows_the_loss_over_response_tokens(folder: Path) -> None:
    """One batch of one epoch: AdamW's first step, by gradients of plain torch, one row at a time."""
    model, tokenizer = load(folder, "model")
    rows, before = instructions(6), {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = torch.cat([plain_loss(model, row) for row in encode(tokenizer, rows, 32)])
    losses.mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    settings = TrainingSettings(epochs=1, learning_rate=1e-3, batch_size=6)
    fine_tune(model, tokenizer, rows, settings, max_length=32, precision="float32", seed=0)
    for name, p in model.named_parameters():
        g = gradients[name] / max(float(norm), 1.0)
        assert torch.allclose(p, before[name] - 1e-3 * g / (g.abs() + 1e-8), atol=5e-5), name
