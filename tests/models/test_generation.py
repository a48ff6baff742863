"""What a language model answers, and how likely it finds responses: as one row at a time, whatever the batch."""

import random
from pathlib import Path

import pytest
import torch
import transformers

from defensekit.defense.estimation import estimate
from defensekit.models import generation
from defensekit.models.causal import perplexity
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.generation import generate, measure_responses
from defensekit.models.loading import load
from defensekit.models.pair import Pair
from defensekit.text import encode
from defensekit.text.chat import encode_prompts, stops
from defensekit.utils.errors import DefenseKitError
from defensekit_finepurifying.estimators.fisher import Fisher
from tests.causal import instructions, make_instructed
from tests.text.test_chat import plain_loss

ROWS = instructions(24)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of weights so large that its answers differ, and that some of them end."""
    return make_instructed(tmp_path_factory.mktemp(request.param), request.param, spread=0.4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "recurrent"])
def test_answers_in_batches_are_those_of_one_row_at_a_time(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(make_instructed(tmp_path, architecture, spread=0.4), "model")
    expected = []
    for prompt in encode_prompts(tokenizer, ROWS, 32):
        ids = torch.tensor([prompt["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        expected.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert len(set(expected)) > 3
    assert len({len(prompt["input_ids"]) for prompt in encode_prompts(tokenizer, ROWS, 32)}) > 3
    for size in (7, 24):
        monkeypatch.setattr(generation, "_ROWS", size)
        answers = generate(model, tokenizer, ROWS, max_length=32, new_tokens=12)
        assert [answer.text for answer in answers] == expected
    shuffled = random.Random(0).sample(range(len(ROWS)), len(ROWS))
    answers = generate(model, tokenizer, [ROWS[i] for i in shuffled], max_length=32, new_tokens=12)
    assert [answer.text for answer in answers] == [expected[i] for i in shuffled]
    assert tokenizer.padding_side == "right"


def test_answers_are_cut_where_the_model_does_not_end_them(folder: Path) -> None:
    model, tokenizer = load(folder, "model")
    [whole] = generate(model, tokenizer, ROWS[:1], max_length=32, new_tokens=12)
    words = whole.text.split()
    tokenizer.eos_token = words[-1]
    [ended] = generate(model, tokenizer, ROWS[:1], max_length=32, new_tokens=12)
    assert ended.ended
    assert ended.text.split() == words[: words.index(words[-1])]
    tokenizer.eos_token = "<end>"
    cut = generate(model, tokenizer, ROWS[:8], max_length=32, new_tokens=1)
    assert not any(answer.ended and answer.text for answer in cut)
    assert all(len(answer.text.split()) <= 1 for answer in cut)


def test_what_a_template_writes_behind_responses_ends_an_answer_as_well(tmp_path: Path) -> None:
    """As Gemma's and Phi's turns do, whose tokenizers name another token."""
    model, tokenizer = load(make_instructed(tmp_path, spread=0.4), "model")
    expected = generate(model, tokenizer, ROWS, max_length=32, new_tokens=12)
    assert any(answer.ended for answer in expected)
    tokenizer.eos_token = "<unk>"
    unknown = tokenizer.unk_token_id
    assert stops(tokenizer, ROWS) == sorted((unknown, tokenizer.convert_tokens_to_ids("<end>")))
    found = generate(model, tokenizer, ROWS, max_length=32, new_tokens=12)
    assert [one.ended for one in found] >= [one.ended for one in expected]
    assert all(other.text.startswith(one.text) for one, other in zip(found, expected, strict=True))


def test_a_folder_does_not_say_how_its_model_is_asked(folder: Path) -> None:
    """A suspect's own settings may sample, or forbid the words that would give it away."""
    model, tokenizer = load(folder, "model")
    expected = generate(model, tokenizer, ROWS[:8], max_length=32, new_tokens=12)
    words = tokenizer.encode(" ".join(answer.text for answer in expected), add_special_tokens=False)
    own = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, suppress_tokens=words, max_new_tokens=3, use_cache=False
    )
    model.generation_config = own
    assert generate(model, tokenizer, ROWS[:8], max_length=32, new_tokens=12) == expected
    assert model.generation_config is own


def test_likelihood_is_that_of_plain_torch_one_row_at_a_time(folder: Path) -> None:
    model, tokenizer = load(folder, "model")
    measured = measure_responses(model, tokenizer, ROWS, max_length=32)
    for i, row in enumerate(encode(tokenizer, ROWS, 32)):
        with torch.no_grad():
            losses = plain_loss(model, row)
            guesses = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
        assert float(measured["losses"][i]) == pytest.approx(float(losses.sum()), rel=1e-5)
        assert int(measured["tokens"][i]) == len(losses)
        start = len(row["input_ids"]) - len(losses)
        assert int(measured["right"][i]) == int(
            (guesses[start - 1 : -1] == torch.tensor(row["input_ids"][start:])).sum()
        )
    per_token = float(measured["losses"].sum() / measured["tokens"].sum())
    assert perplexity(model, tokenizer, ROWS, max_length=32) == pytest.approx(float(torch.tensor(per_token).exp()))


def test_a_broken_model_is_an_error(folder: Path) -> None:
    model, tokenizer = load(folder, "model")
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.nan)
    with pytest.raises(DefenseKitError, match="NaN or infinity"):
        measure_responses(model, tokenizer, ROWS[:4], max_length=32)


def test_curvature_is_of_the_loss_of_the_response(folder: Path) -> None:
    """The mean of squared gradients, each of one row's loss over its response."""
    model, tokenizer = load(folder, "model")
    rows = ROWS[:6]
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in encode(tokenizer, rows, 32):
        model.zero_grad()
        plain_loss(model, row).sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            expected[name] += p.grad**2 / len(rows)
    pair = Pair(Checkpoint(folder), Checkpoint(folder))
    found = estimate(pair, Fisher(), rows, max_length=32, seed=0, report=lambda done, total: None)
    for name, own in pair.named_like_the_pair(list(expected)).items():
        assert torch.allclose(found.statistics["curvature"][name], expected[own], rtol=1e-3, atol=1e-9), name


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    """As GPT-2's: the end of a response counts, and padding, which is the same token, does not."""
    model, tokenizer = load(make_instructed(tmp_path, "gpt2", spread=0.4), "model")
    expected = generate(model, tokenizer, ROWS, max_length=32, new_tokens=12)
    likely = measure_responses(model, tokenizer, ROWS, max_length=32)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load(tmp_path, "model")
    assert tokenizer.pad_token == "<end>"
    assert generate(model, tokenizer, ROWS, max_length=32, new_tokens=12) == expected
    for name, values in measure_responses(model, tokenizer, ROWS, max_length=32).items():
        assert torch.allclose(values, likely[name], rtol=1e-5), name
