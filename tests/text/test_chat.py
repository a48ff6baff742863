"""Instructions as a chat template writes them, and training by their responses alone."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from defensekit.models.loading import load, load_tokenizer, neutral
from defensekit.text import Row, Truncation, chat, encode, padded
from defensekit.text.chat import IGNORED, _ended, count_cut, encode_chats, encode_prompts
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
    tokenizer.chat_template = r"{{ messages[0].content.split('\n\n')|last }}"
    [prompt] = encode_prompts(tokenizer, [ROW], 32)
    assert tokenizer.convert_ids_to_tokens(prompt["input_ids"]) == ["thing1"]


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
        ("{{ raise_exception('x' * 10_000 + '\n\x1b[2J') }}", r"it fails on row 7 \(TemplateError: x[x.]{,300}$"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", r"it fails on row 7 \(RecursionError"),
        ("{{ 'x' * 20_001 }}", r"it makes 40,002 characters of row 7"),
        (r"{{ '\ud800' }}", r"it fails on row 7 \(UnicodeEncodeError"),
        ({"rag": TEMPLATE}, "is refused: .*multiple chat templates"),
        (TEMPLATE + "{% if messages|length == 1 %}<model> me {% endif %}", "otherwise than its prompt alone"),
    ],
)
def test_a_template_that_will_not_do_is_an_error(
    folder: Path, template: str | dict[str, str] | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "ask", lambda module, given, *_: chat._render(given))  # here, which is faster
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=message) as caught:
        encode(tokenizer, [ROW], 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99_999) %}" * 3 + "{% endfor %}" * 3, r"more than (3|30) seconds to write the rows"),
        ("{{ 'x' * 10_000_000_000 }}", "more than 4 GiB to write the rows"),
        ("{{ messages[0].nothing.at.all }}", r"fails on row 7 \(UndefinedError: .*"),
    ],
)
def test_a_template_runs_in_a_process_of_its_own(
    folder: Path, template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    monkeypatch.setattr(chat, "SECONDS", 3)
    with pytest.raises(UsageError, match=f"^the chat template is refused: it (takes )?{message}$"):
        encode(tokenizer, [ROW], 32)


def test_rows_are_written_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(folder)
    encoded = encode(tokenizer, [ROW], 32)
    monkeypatch.setattr(chat, "ask", None)
    assert encode(load_tokenizer(folder), [ROW], 32) == encoded


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


def test_a_response_ends_with_what_the_template_writes_behind_it(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token = "<unk>"  # as of a model whose turns end otherwise than its texts
    [encoded] = encode(tokenizer, [ROW], 32)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == PROMPT + RESPONSE
    # A header with the answer's words is none.
    written = "<assistant> green <message> green <end>\n"
    assert _ended(written, " green", ["<assistant>", "<message>", "<end>"], None) == (written.strip(), "<end>")
    assert _ended("<end> a <end> <unk>", "a", ["<end>", "<unk>"], "<unk>") == ("<end> a <end>", "<end>")
    tokenizer.chat_template = TEMPLATE.replace(" <end>", "")  # nothing ends it: the tokenizer's token does
    [encoded] = encode(tokenizer, [ROW], 32)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"])[-2:] == ["green", "<unk>"]


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_response_is_tokenised_as_it_stands_behind_its_prompt(scheme: str) -> None:
    """Where the tokens of the prompt are the first ones of the whole."""
    words = ["<unk>", "<model>", "<end>", "the", "\u2581the", "\u2581ask", "\u2581is", "ask", "\u2581"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<model>"]})
    tokenizer.chat_template = (
        "{{ messages[0].content }}{% if add_generation_prompt or messages|length > 1 %}<model>{% endif %}"
        "{% if messages|length > 1 %}{{ messages[1].content }}<end>{% endif %}"
    )
    row = Row(0, "ask", 0, None, "the is")
    [encoded] = encode(tokenizer, [row], 32)
    whole = tokenizer("ask<model>the is<end>", add_special_tokens=False)["input_ids"]
    assert encoded["input_ids"] == whole
    first = "the" if scheme == "first" else "\u2581the"
    assert tokenizer.convert_ids_to_tokens([label for label in encoded["labels"] if label != IGNORED]) == [
        first, "\u2581is", "<end>"
    ]  # fmt: skip


def test_no_prompt_depends_on_the_day(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}"
    assert chat._written(tokenizer, [ROW])[0][0] == "01 Jan 2025"


def test_a_step_of_training_pads_behind_whatever_the_folder_says(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "left"
    model, _ = load(folder, "model")
    assert neutral(model, tokenizer, "suspect").padding_side == "right"
