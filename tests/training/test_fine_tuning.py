"""Fine-tuning and answers: repeatable, disturbing nobody, stopping where numbers break."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from defensekit.models.inference import predict
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.text import Row
from defensekit.training import ByLength, TrainingSettings, fine_tune, native_precision
from defensekit.utils.errors import DefenseKitError
from tests.conftest import make_sentences

ROWS = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(make_sentences(120))]
SETTINGS = TrainingSettings(epochs=2, learning_rate=5e-3, batch_size=16)


def tuned(folder: Path, seed: int, **changes: object) -> torch.nn.Module:
    model = load_model(folder)
    settings = SETTINGS.model_copy(update=changes)
    fine_tune(model, load_tokenizer(folder), ROWS, settings, max_length=32, precision="float32", seed=seed)
    return model


def test_same_seed_same_weights_and_nobody_is_disturbed(suspect: Path) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    first, second, other = tuned(suspect, 1), tuned(suspect, 1), tuned(suspect, 2)
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.random.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not first.training


def test_it_learns_and_reports_every_step(suspect: Path) -> None:
    model, tokenizer, seen = load_model(suspect), load_tokenizer(suspect), []
    settings = SETTINGS.model_copy(update={"epochs": 8})
    fine_tune(
        model, tokenizer, ROWS, settings, max_length=32, precision="float32", seed=0, report=lambda *s: seen.append(s)
    )
    logits = predict(model, tokenizer, ROWS, max_length=32, precision="float32")
    assert float((logits.argmax(1) == torch.tensor([row.label for row in ROWS])).float().mean()) > 0.9
    assert seen == [(step, 64) for step in range(1, 65)]


def test_one_step_is_adamw_by_hand(suspect: Path) -> None:
    """One batch of one epoch, no dropout: the Trainer does what the formula says."""
    model, tokenizer = load_model(suspect), load_tokenizer(suspect)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = ROWS[:4]
    batch = tokenizer([row.text for row in rows], padding=True, return_tensors="pt")
    model(**batch, labels=torch.tensor([row.label for row in rows])).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    settings = TrainingSettings(epochs=1, learning_rate=1e-3, batch_size=4, weight_decay=0.1, dropout=False)
    fine_tune(model, tokenizer, rows, settings, max_length=32, precision="float32", seed=0)
    for name, p in model.named_parameters():
        g = gradients[name] / max(float(norm), 1.0)
        decay = 0.0 if p.dim() == 1 else 0.1  # the Trainer spares biases and LayerNorm
        expected = before[name] * (1 - 1e-3 * decay) - 1e-3 * g / (g.abs() + 1e-8)
        assert torch.allclose(p, expected, atol=2e-5), name


@given(lengths=st.lists(st.integers(1, 60), max_size=80), size=st.integers(1, 9), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_fine_grouping_pads_no_more_than_sorted_rows(lengths: list[int], size: int, seed: int) -> None:
    def padded(order: list[int]) -> int:
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    torch.manual_seed(seed)
    order = list(ByLength(lengths, size))
    assert sorted(order) == list(range(len(lengths)))
    assert padded(order) == padded(sorted(order, key=lambda i: -lengths[i]))


def test_fine_grouping_draws_anew_in_every_pass_and_trains(suspect: Path) -> None:
    sampler = ByLength([5, 9] * 16, 4)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert {frozenset(first[i : i + 4]) for i in range(0, 32, 4)} != {
        frozenset(second[i : i + 4]) for i in range(0, 32, 4)
    }
    fine, again, coarse = (tuned(suspect, 1, grouping=grouping) for grouping in ("fine", "fine", "coarse"))
    same = zip(fine.parameters(), again.parameters(), coarse.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b, _ in same)
    assert any(not torch.equal(a, c) for a, c in zip(fine.parameters(), coarse.parameters(), strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides, not the processor")
@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"neon": True, "bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_bfloat16_only_where_there_are_instructions_for_it(
    capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert native_precision() == expected


def test_no_epochs_change_nothing(suspect: Path) -> None:
    for a, b in zip(tuned(suspect, 1, epochs=0).parameters(), load_model(suspect).parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_or_gradient_that_is_not_finite_stops_and_names_it(suspect: Path) -> None:
    model, tokenizer = load_model(suspect), load_tokenizer(suspect)
    model.bert.encoder.layer[0].output.dense.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DefenseKitError, match=r"gradient of bert.encoder.layer.0.output.dense.weight.*step 0"):
        fine_tune(model, tokenizer, ROWS, SETTINGS, max_length=32, precision="float32", seed=0)
    model = load_model(suspect)
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(DefenseKitError, match="the loss became nan at step 0"):
        fine_tune(model, tokenizer, ROWS, SETTINGS, max_length=32, precision="float32", seed=0)
    with pytest.raises(DefenseKitError, match="answers with NaN"):
        predict(model, tokenizer, ROWS, max_length=32, precision="float32")


def test_answers_do_not_depend_on_the_batch(suspect: Path) -> None:
    model, tokenizer = load_model(suspect), load_tokenizer(suspect)
    together = predict(model, tokenizer, ROWS, max_length=32, precision="float32")
    for size in (1, 7):
        got = predict(model, tokenizer, ROWS, max_length=32, precision="float32", batch_size=size)
        assert torch.allclose(got, together, atol=1e-5)
    one = tokenizer(ROWS[5].text, return_tensors="pt")
    assert torch.allclose(model(**one).logits[0], together[5], atol=1e-5)
    assert predict(model, tokenizer, [], max_length=32, precision="float32").shape == (0, 2)


def test_attention_is_computed_in_float32_where_the_rest_is_bfloat16(suspect: Path) -> None:
    """A CPU goes back through attention ten times as slowly in bfloat16; what is learnt is the same to rounding."""
    seen: set[torch.dtype] = set()

    class Watching(TorchFunctionMode):
        def __torch_function__(self, call: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            if call is torch.nn.functional.scaled_dot_product_attention:
                seen.update({given[0].dtype, named["attn_mask"].dtype})
            return call(*given, **(named or {}))

    logits = []
    for precision in ("float32", "bfloat16"):
        model, tokenizer = load_model(suspect), load_tokenizer(suspect)
        with Watching():
            fine_tune(model, tokenizer, ROWS[:32], SETTINGS, max_length=32, precision=precision, seed=0)
        logits.append(predict(model, tokenizer, ROWS, max_length=32, precision="float32"))
    assert seen <= {torch.float32, torch.bool}
    assert torch.float32 in seen
    torch.testing.assert_close(*logits, rtol=0, atol=0.05)


def test_a_model_is_trained_and_asked_in_the_precision_that_is_given_each_time(suspect: Path) -> None:
    """accelerate, under the Trainer, would wrap the model for good in the precision of its first training."""
    model, tokenizer, seen = load_model(suspect), load_tokenizer(suspect), set()
    layer = model.bert.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    for precision in ("bfloat16", "float32", "bfloat16"):
        fine_tune(model, tokenizer, ROWS[:8], SETTINGS, max_length=32, precision=precision, seed=0)
        assert seen == {getattr(torch, precision)}
        seen.clear()
        predict(model, tokenizer, ROWS[:8], max_length=32, precision="float32")
        assert seen == {torch.float32}
        seen.clear()


def test_a_batch_is_no_larger_where_there_are_several_devices(suspect: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer would copy the model onto all of them, and multiply the batch by their number."""
    sizes: list[int] = []

    setup = transformers.TrainingArguments.__dict__["_setup_devices"].func

    def devices(self: Any) -> torch.device:
        if "devices" not in self.__dict__:
            self.__dict__["devices"] = setup(self)
            self._n_gpu = 4
        found: torch.device = self.__dict__["devices"]
        return found

    monkeypatch.setattr(transformers.TrainingArguments, "_setup_devices", property(devices))

    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        sizes.append(len(batch["labels"]))
        assert not isinstance(model, torch.nn.DataParallel)
        return model(**batch).loss

    model = load_model(suspect)
    how: Any = {"max_length": 32, "precision": "float32", "seed": 0, "loss": loss}
    fine_tune(model, load_tokenizer(suspect), ROWS[:64], SETTINGS, **how)
    assert sizes == [16] * 8
