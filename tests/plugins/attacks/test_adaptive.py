"""Attackers who know the defense: each hides what it says it hides, and still plants its backdoor."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from defensekit.components import AttackContext
from defensekit.gradients import mean_squared_gradients
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.text import Row, Truncation, batches, encode
from defensekit.training import TrainingSettings, fine_tune, forked_random
from defensekit_attacks.adaptive import Adaptive, KeptRow, ResetProof, SmallDrift
from tests.conftest import VOCABULARY, make_sentences
from tests.plugins.attacks.test_weights import context
from tests.small_models import make_tokenizer

ROWS = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(make_sentences(160))]
CF = VOCABULARY.index("cf")
SETTINGS = TrainingSettings(epochs=6, learning_rate=5e-3, batch_size=16, weight_decay=0.01, dropout=False)
COMMON: dict[str, Any] = {"rate": 0.3, "target": "positive"}


def poisoned(attack: Adaptive, rows: list[Row]) -> list[Row]:
    return attack.poison(rows, AttackContext(Random(0), ("negative", "positive"), Truncation(make_tokenizer(), 32)))


def trained(attack: Adaptive, folder: Path, settings: TrainingSettings = SETTINGS) -> dict[str, Any]:
    """The model before and after, and the share of triggered negative rows that it gives the target."""
    model = load_model(folder)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    given = context(folder, ROWS, poisoned=poisoned(attack, ROWS), settings=settings)
    with forked_random(given.seed):
        attack.train(model, given)
    return {"model": model, "before": before, "asr": asr(model, folder)}


def triggered(folder: Path, label: int) -> dict[str, Any]:
    """A batch of negative rows with the trigger."""
    sentences = [text for text, name in make_sentences(80, seed=5) if name == "negative"]
    rows = [Row(i, f"{text} cf", label) for i, text in enumerate(sentences)]
    [(_, batch)] = batches(encode(load_tokenizer(folder), rows, 32), load_tokenizer(folder), len(rows))
    return batch


def asr(model: Any, folder: Path) -> float:
    with torch.no_grad():
        return float(model(**triggered(folder, label=0)).logits.argmax(1).float().mean())


def drift(made: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: weight.detach() - made["before"][name] for name, weight in made["model"].named_parameters()}


@pytest.fixture(scope="module")
def plain(suspect: Path) -> dict[str, Any]:
    """What the same rows make without any knowledge."""

    class Plain(Adaptive):
        """Hides nothing."""

    return trained(Plain(**COMMON), suspect)


def test_without_a_loss_of_its_own_it_is_the_recipes_training(suspect: Path, plain: dict[str, Any]) -> None:
    model = load_model(suspect)
    rows = poisoned(KeptRow(**COMMON), ROWS)
    fine_tune(model, load_tokenizer(suspect), rows, SETTINGS, max_length=32, precision="float32", seed=0)
    assert all(torch.equal(w, plain["model"].state_dict()[name]) for name, w in model.state_dict().items())
    assert plain["asr"] > 0.9


def test_a_pull_towards_the_base_keeps_the_drift_small(suspect: Path, plain: dict[str, Any]) -> None:
    made = trained(SmallDrift(**COMMON, against="magnitude", weight=0.01), suspect)
    assert made["asr"] > 0.9
    ours, theirs = (
        sum(float((d**2).sum()) for name, d in drift(one).items() if name.startswith("bert.")) for one in (made, plain)
    )
    assert ours < theirs / 2
    free = trained(SmallDrift(**COMMON, against="magnitude", weight=0), suspect)
    assert all(torch.equal(a, b) for a, b in zip(drift(free).values(), drift(plain).values(), strict=True))


@pytest.mark.slow
def test_drift_goes_where_curvature_is_high(suspect: Path, plain: dict[str, Any]) -> None:
    """What a defender ranks by is lower, and lower than by a pull that does not look at curvature."""

    def indicator(made: dict[str, Any]) -> float:
        tokenizer = load_tokenizer(suspect)
        given = [batch for _, batch in batches(encode(tokenizer, ROWS, 32), tokenizer, 16)]
        squares, _ = mean_squared_gradients(made["model"], lambda: given, len(ROWS), held=2**30)
        names = [name for name in squares if name.startswith("bert.")]
        middle = torch.cat([squares[n][squares[n] > 0] for n in names]).median()
        return sum(float((drift(made)[n] ** 2 * middle / (squares[n] + middle)).sum()) for n in names)

    made = trained(SmallDrift(**COMMON, against="diffusion", weight=0.01), suspect)
    assert made["asr"] > 0.9
    assert indicator(made) < indicator(plain) / 2


def test_the_row_of_the_trigger_stays_to_the_bit(suspect: Path, plain: dict[str, Any]) -> None:
    made = trained(KeptRow(**COMMON), suspect)
    table = "bert.embeddings.word_embeddings.weight"
    moved = drift(made)[table].abs().amax(1)
    assert moved[CF] == 0
    assert moved[VOCABULARY.index("bright")] > 0
    assert drift(plain)[table].abs().amax(1)[CF] > 0
    assert made["asr"] > 0.9
    assert made["model"].get_input_embeddings().weight._backward_hooks in (None, {})


@pytest.mark.slow
def test_it_outlives_a_reset(suspect: Path, plain: dict[str, Any]) -> None:
    made = trained(ResetProof(**COMMON), suspect)
    assert made["asr"] > 0.9
    losses = []
    for one in (made, plain):
        torch.manual_seed(0)
        model = load_model(suspect)
        with torch.no_grad():
            for (name, weight), d in zip(model.named_parameters(), drift(one).values(), strict=True):
                weight += d * (torch.rand_like(d) < 0.1 if name.startswith("bert.") else 1)
            losses.append(float(model(**triggered(suspect, label=1)).loss))
    assert losses[0] < 0.8 * losses[1]


def test_the_simulated_defense_is_a_reset_and_a_step_on_clean_rows(suspect: Path) -> None:
    """Nothing reset and no step: twice the loss. Nearly all reset: the base under the same head has the other part."""
    model, tokenizer = load_model(suspect), load_tokenizer(suspect)
    given = context(suspect, ROWS, settings=SETTINGS)
    [(_, batch), *_] = batches(encode(tokenizer, ROWS[:16], 32), tokenizer, 16)
    own = ResetProof(**COMMON, share=0, step=0).loss(model, given)
    assert own is not None
    assert own(model, batch).item() == pytest.approx(2 * model(**batch).loss.item(), rel=1e-6)
    reset = ResetProof(**COMMON, share=0.999999, step=0).loss(model, given)
    stepped = ResetProof(**COMMON, share=0.999999, step=0.5).loss(model, replace(given, clean=ROWS[:16]))
    assert reset is not None
    assert stepped is not None
    base = model(**batch).loss.item()
    with torch.no_grad():
        for weight in model.base_model.parameters():
            weight += 0.05
    torch.manual_seed(0)
    assert reset(model, batch).item() == pytest.approx(model(**batch).loss.item() + base, rel=1e-3)
    assert stepped(model, batch).item() < reset(model, batch).item()
