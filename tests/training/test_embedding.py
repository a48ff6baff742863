"""Training the rows of an embedding table that occur is training the table, for whatever model reads it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from defensekit.models.inference import predict
from defensekit.models.loading import load
from defensekit.text import Row, batches, encode
from defensekit.training import TrainingSettings, fine_tune
from defensekit.training.embedding import compact_embedding
from defensekit.utils.errors import DefenseKitError
from tests.causal import instructions, make_instructed
from tests.conftest import VOCABULARY, slow_but
from tests.models.test_padding import ROWS, architectures, classifier

SETTINGS = TrainingSettings(epochs=2, learning_rate=1e-2, batch_size=5, dropout=True)
QUICK = ("roberta", "t5")
Weights = dict[str, torch.Tensor]


def weights(model: torch.nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def tuned(folder: Path, rows: list[Row], settings: TrainingSettings, loss: Any = None) -> Weights:
    model, tokenizer = load(folder, "model")
    table = model.get_input_embeddings().weight
    fine_tune(model, tokenizer, rows, settings, max_length=48, precision="float32", seed=3, loss=loss)
    assert model.get_input_embeddings().weight is table
    return weights(model)


def own_loss(model: Any, batch: Any) -> torch.Tensor:
    """The model's own loss, given as somebody's: the whole table is trained."""
    return model(**batch).loss


@pytest.mark.parametrize("architecture", slow_but(architectures(), *QUICK))
def test_every_architecture_learns_what_it_learns_with_its_whole_table(architecture: str, tmp_path: Path) -> None:
    classifier(tmp_path, architecture)
    settings = SETTINGS.model_copy(update={"weight_decay": 0.3})
    compact, whole = tuned(tmp_path, ROWS, settings), tuned(tmp_path, ROWS, settings, own_loss)
    assert compact.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(compact[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("architecture", "decay"), [("bert", 0.0), ("gpt2", 0.3)])
def test_it_learns_what_a_plain_loop_in_float64_learns(architecture: str, decay: float, tmp_path: Path) -> None:
    classifier(tmp_path, architecture)
    settings = SETTINGS.model_copy(
        update={"batch_size": len(ROWS), "learning_rate": 1e-3, "weight_decay": decay, "dropout": False}
    )
    model, tokenizer = load(tmp_path, "model")
    before, model = weights(model), model.double().eval()
    [(_, batch)] = batches(encode(tokenizer, ROWS, 48), tokenizer, len(ROWS))
    named = dict(model.named_parameters())
    decaying = [p for p in named.values() if p.dim() > 1]  # the Trainer spares biases and LayerNorm
    sparing = [p for p in named.values() if p.dim() == 1]
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": decay}, {"params": sparing, "weight_decay": 0.0}
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for step in range(settings.epochs):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-3 * (1 - step / settings.epochs)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    compact = tuned(tmp_path, ROWS, settings)
    for name, tensor in weights(model).items():
        if tensor.dim() < 2:  # the gradient of a key's bias is rounding, which AdamW makes a step of
            continue
        torch.testing.assert_close(compact[name], tensor.to(compact[name].dtype), rtol=1e-4, atol=1e-4, msg=name)
    [table] = {name for name, p in named.items() if p is model.get_input_embeddings().weight}
    occurring = [i for i in batch["input_ids"].unique().tolist() if i]  # padding has no gradient
    assert not torch.equal(compact[table][occurring], before[table][occurring])
    absent = [i for i in range(1, len(VOCABULARY)) if i not in occurring]
    assert absent
    kept = math.prod(1 - 1e-3 * decay * (1 - step / settings.epochs) for step in range(settings.epochs))
    torch.testing.assert_close(compact[table][absent], before[table][absent] * kept, rtol=1e-6, atol=0)


def test_the_table_is_small_while_it_is_trained_and_errors_name_it(tmp_path: Path) -> None:
    model, tokenizer = load(classifier(tmp_path, "bert"), "model")
    before, inside = weights(model), []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda module, ids, output: inside.append(len(module.weight)))
    fine_tune(model, tokenizer, ROWS[:2], SETTINGS, max_length=48, precision="float32", seed=0)
    fine_tune(model, tokenizer, ROWS[:2], SETTINGS, max_length=48, precision="float32", seed=0, loss=own_loss)
    assert max(inside[: len(inside) // 2]) < 30 < len(VOCABULARY) == max(inside)
    assert weights(model).keys() == before.keys()
    assert embedding.padding_idx == 0
    hook.remove()

    def watch(module: torch.nn.Module, ids: Any, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: gradient * math.nan)

    embedding.register_forward_hook(watch)
    with pytest.raises(DefenseKitError, match=r"gradient of bert.embeddings.word_embeddings.weight became NaN"):
        fine_tune(model, tokenizer, ROWS, SETTINGS, max_length=48, precision="float32", seed=0)
    assert len(embedding.weight) == len(VOCABULARY)
    assert not embedding._forward_pre_hooks


def test_what_depends_on_the_whole_table_keeps_it(tmp_path: Path) -> None:
    tied, _ = load(make_instructed(tmp_path), "model")
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    frozen, watched = (
        transformers.AutoModelForSequenceClassification.from_config(architectures()["bert"]()) for _ in range(2)
    )
    frozen.get_input_embeddings().weight.requires_grad_(False)
    watched.get_input_embeddings().weight.register_hook(lambda gradient: gradient * 0)
    for model in (tied, frozen, watched):
        table = model.get_input_embeddings().weight
        with compact_embedding(model, [4, 5]):
            assert model.get_input_embeddings().weight is table


def test_a_tied_model_of_texts_learns_as_before(tmp_path: Path) -> None:
    make_instructed(tmp_path)
    compact, whole = (tuned(tmp_path, instructions(6), SETTINGS, loss) for loss in (None, own_loss))
    for name, tensor in whole.items():
        assert torch.equal(compact[name], tensor), name


@pytest.mark.parametrize("padding", ["[PAD]", None])
def test_targets_are_learnt_in_place_of_labels(padding: str | None, tmp_path: Path) -> None:
    """Also by a tokenizer that has no padding token, in parts of one length each."""
    model, tokenizer = load(classifier(tmp_path, "bert"), "model")
    tokenizer.pad_token = padding
    targets = torch.softmax(torch.randn(len(ROWS), 3, generator=torch.Generator().manual_seed(0)), -1)
    settings = SETTINGS.model_copy(update={"epochs": 40, "dropout": False, "batch_size": len(ROWS)})
    fine_tune(model, tokenizer, ROWS, settings, max_length=48, precision="float32", seed=0, targets=targets)
    answers = predict(model, tokenizer, ROWS, max_length=48, precision="float32").softmax(-1)
    assert float((answers - targets).abs().max()) < 0.1
