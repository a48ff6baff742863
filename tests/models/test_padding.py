"""Accuracy and curvature of every architecture are those of its rows, one at a time, in plain torch."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from defensekit.gradients import squared_gradients
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.inference import predict
from defensekit.models.loading import load, save_model
from defensekit.models.padding import note, settle_gradients, settle_padding
from defensekit.models.pair import Pair
from defensekit.text import Row, batches, encode
from defensekit.training import TrainingSettings, fine_tune
from defensekit.utils.errors import UsageError
from tests.conftest import VOCABULARY, make_sentences, slow_but
from tests.models.architectures import architectures
from tests.small_models import make_tokenizer

PADDING_COUNTS = ("convbert", "fnet", "mobilebert")
SETTINGS = TrainingSettings(epochs=1, learning_rate=1e-3, batch_size=12, dropout=False)
ROWS = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(make_sentences(12))]
ROWS += [Row(100 + i, text, i) for i, text in enumerate(("the", "witty film"))]


def classifier(folder: Path, architecture: str, padding_side: str = "right") -> Path:
    """A classifier of three labels, its weights large enough to matter."""
    config = architectures()[architecture]()
    config.num_labels = 3
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left" if architecture == "xlnet" else padding_side
    tokenizer.save_pretrained(folder)
    return folder


def without_token(folder: Path, architecture: str) -> Path:
    """A classifier without a padding token, in config and tokenizer."""
    classifier(folder, architecture)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[SEP]")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    return folder


def one_by_one(folder: Path, rows: list[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and squared gradients by transformers and autograd alone, a row at a time."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits, sums = [], {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in rows:
        answer = model(**tokenizer([row.text], return_tensors="pt")).logits
        model.zero_grad()
        torch.nn.functional.cross_entropy(answer, torch.tensor([row.label])).backward()
        logits.append(answer.detach())
        for name, p in model.named_parameters():
            if p.grad is not None:
                sums[name] += p.grad**2
    return torch.cat(logits), sums


def check(folder: Path, rows: list[Row]) -> str | None:
    """Compare logits (and with them every answer) and curvature; returns what is said of padding."""
    expected, sums = one_by_one(folder, rows)
    model, tokenizer = load(folder, "model")
    got = predict(model, tokenizer, rows, max_length=48, precision="float32", batch_size=5)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    measured, _ = squared_gradients(model, (batch for _, batch in batches(encode(tokenizer, rows, 48), tokenizer, 5)))
    largest = max(float(tensor.norm()) for tensor in sums.values())
    for name, tensor in sums.items():
        assert float((measured[name] - tensor).norm()) <= 2e-3 * float(tensor.norm()) + 1e-6 * largest, name
    return note(tokenizer)


@pytest.mark.parametrize("architecture", slow_but(architectures(), "bert", "convbert", "xlnet"))
def test_one_row_at_a_time(architecture: str, tmp_path: Path) -> None:
    assert bool(check(classifier(tmp_path, architecture), ROWS)) == (architecture in PADDING_COUNTS)


@pytest.mark.parametrize("architecture", slow_but(["gpt2", "llama"], "gpt2"))
def test_texts_that_end_in_the_padding_token(architecture: str, tmp_path: Path) -> None:
    rows = [Row(row.id, f"{row.text} [SEP]" if row.id < 100 else row.text, row.label) for row in ROWS]
    assert check(without_token(tmp_path, architecture), rows)
    model, tokenizer = load(tmp_path, "model")
    fine_tune(model, tokenizer, rows, SETTINGS, max_length=48, precision="float32", seed=0)
    save_model(model, tmp_path / "tuned")
    assert Checkpoint(tmp_path / "tuned").config.get("pad_token_id") is None
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "tuned")
    check(tmp_path / "tuned", rows)


@pytest.mark.parametrize("architecture", ["gpt2", "biogpt"])
def test_a_tokenizer_that_pads_on_the_wrong_side(architecture: str, tmp_path: Path) -> None:
    assert not check(classifier(tmp_path, architecture, padding_side="left"), ROWS)


def test_a_mixture_of_experts_has_no_curvature_by_its_files_names(tmp_path: Path) -> None:
    mixture = Checkpoint(classifier(tmp_path, "mixtral"))
    model, _ = load(tmp_path, "model")
    with pytest.raises(UsageError, match="a mixture's experts"):
        Pair(mixture, mixture).named_like_the_pair(name for name, _ in model.named_parameters())


def test_gradients_that_padding_changes_though_answers_stay(tmp_path: Path) -> None:
    model, tokenizer = load(classifier(tmp_path, "bert"), "model")
    encoded = encode(tokenizer, ROWS, 48)
    settle_gradients(model, tokenizer, encoded)
    assert tokenizer.pad_token == "[PAD]"
    whole = model.forward

    def forward(attention_mask: torch.Tensor, **inputs: torch.Tensor) -> Any:
        answer = whole(attention_mask=attention_mask, **inputs)
        shift = model.classifier.bias - model.classifier.bias.detach()  # nothing, with a gradient
        answer.logits = answer.logits + shift * (attention_mask == 0).sum(1, keepdim=True)
        return answer

    model.forward = forward
    settle_padding(model, tokenizer)
    assert tokenizer.pad_token == "[PAD]"
    settle_gradients(model, tokenizer, encoded)
    assert note(tokenizer)


def test_parts_of_one_length_have_the_gradient_of_their_batch(tmp_path: Path) -> None:
    trained = []
    for token in ("[PAD]", None):
        model, tokenizer = load(classifier(tmp_path / str(token), "bert"), "model")
        tokenizer.pad_token = token
        gradients: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            # Gradients and not weights: AdamW steps as far where one is nearly 0, and rounding decides on its sign.
            parameter.register_post_accumulate_grad_hook(partial(keep, gradients, name))
        settings = SETTINGS.model_copy(update={"batch_size": len(ROWS)})
        fine_tune(model, tokenizer, ROWS, settings, max_length=48, precision="float32", seed=0)
        trained.append(gradients)
    assert "classifier.weight" in trained[0]
    assert trained[0].keys() == trained[1].keys()
    for name, padded in trained[0].items():
        torch.testing.assert_close(trained[1][name], padded, rtol=1e-4, atol=1e-5)


def keep(gradients: dict[str, torch.Tensor], name: str, weight: torch.Tensor) -> None:
    assert weight.grad is not None
    gradients[name] = weight.grad.clone()
