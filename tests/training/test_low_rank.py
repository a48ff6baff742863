"""Updates of low rank: what is trained by them is a model like any other afterwards."""

import sys
from pathlib import Path

import pytest
import torch
import transformers

from defensekit.models.loading import load_language_model, load_model, load_tokenizer, save_model
from defensekit.text import Row
from defensekit.training import TrainingSettings, fine_tune
from defensekit.utils.errors import UsageError
from tests.causal import instructions, make_instructed
from tests.conftest import make_sentences, slow_but
from tests.small_models import ARCHITECTURES, make_base, make_suspect

ROWS = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(make_sentences(40))]
SETTINGS = TrainingSettings(epochs=2, learning_rate=1e-2, batch_size=8, dropout=False, lora=2)


def changes(model: torch.nn.Module, folder: Path, rows: list[Row], seed: int = 0) -> dict[str, torch.Tensor]:
    """What training by updates of rank 2 does to each parameter that it changes."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    fine_tune(model, load_tokenizer(folder), rows, SETTINGS, max_length=32, precision="float32", seed=seed)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(weight.requires_grad for weight in after.values())
    moved = {name: (after[name] - weight).detach() for name, weight in before.items()}
    return {name: change for name, change in moved.items() if change.any()}


@pytest.mark.parametrize("architecture", slow_but(ARCHITECTURES, "bert", "gpt2"))
def test_every_linear_layer_moves_by_so_many_ranks_and_the_head_as_it_likes(architecture: str, tmp_path: Path) -> None:
    suspect = make_suspect(tmp_path / "suspect", make_base(tmp_path / "base", architecture), labels=3)
    model = load_model(suspect)
    moved = changes(model, suspect, ROWS)
    inside = {f"{model.base_model_prefix}.{name}" for name, _ in model.base_model.named_parameters()}
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D)
    }
    assert moved.keys() & inside <= linear
    assert len(moved.keys() & inside) >= 8
    assert moved.keys() - inside  # the head
    for name in moved.keys() & inside:
        assert torch.linalg.matrix_rank(moved[name], rtol=1e-4) <= 2, name


def test_the_same_seed_gives_the_same_updates(suspect: Path) -> None:
    first, second, other = (changes(load_model(suspect), suspect, ROWS, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_language_model_is_written_and_read_as_before(tmp_path: Path) -> None:
    folder = make_instructed(tmp_path / "base")
    model = load_language_model(folder)
    moved = changes(model, folder, instructions(40))
    assert moved
    assert not any("embed_tokens" in name for name in moved)
    save_model(model, tmp_path / "trained")
    again = dict(load_language_model(tmp_path / "trained").named_parameters())
    assert all(torch.equal(weight, again[name]) for name, weight in model.named_parameters())


def test_what_was_trained_before_there_were_any_keeps_its_key() -> None:
    assert "lora" not in TrainingSettings().model_dump()
    assert SETTINGS.model_dump()["lora"] == 2


def test_without_peft_it_says_what_to_install(suspect: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"^training.lora needs the package peft: pip install 'defensekit\[lora\]'$"):
        changes(load_model(suspect), suspect, ROWS)
