"""Steps of defenses on rows with any number of labels: each learns them by their own loss."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from defensekit.components import FoundTrigger, ModelStep, ModelStepContext
from defensekit.defense.estimation import other_model
from defensekit.gradients import cross_entropy
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import load_model
from defensekit.models.pair import Pair
from defensekit.text import batches, encode
from defensekit.training import TrainingSettings, fine_tune
from defensekit_baselines.distilling import AttentionDistillation
from defensekit_baselines.regularised import LayerConsistency
from defensekit_finepurifying.distillation import COPIES, Distil
from defensekit_finepurifying.purifiers import FineTune
from defensekit_finepurifying.trigger_unlearning import UnlearnTriggers
from tests.multi_label import make_model, make_rows
from tests.small_models import make_base, make_suspect, make_tokenizer

ROWS = make_rows(48)
FEW: dict[str, Any] = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 8, "dropout": False}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    base = make_base(tmp_path_factory.mktemp("lists") / "base")
    return Pair(Checkpoint(base), Checkpoint(make_suspect(base.parent / "suspect", base, drift=0.3)))


def loss(model: Any) -> float:
    encoded = encode(make_tokenizer(), ROWS, 32)
    with torch.inference_mode():
        return float(
            torch.cat([cross_entropy(model, batch) for _, batch in batches(encoded, make_tokenizer(), 8)]).mean()
        )


@pytest.mark.parametrize(
    "step",
    [
        FineTune(**FEW),
        AttentionDistillation(teacher_epochs=1, beta=1.0, **FEW),
        LayerConsistency(weight=0.1, **FEW),
        UnlearnTriggers(**FEW),
        Distil(texts=16, **FEW),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_step_lowers_the_loss_of_the_rows(step: ModelStep, pair: Pair) -> None:
    assert step.works_for("multi-label")
    model = load_model(pair.suspect.folder)
    before = loss(model)
    triggers = [FoundTrigger("cf", 2, 1.0, 0.0, 8)]
    head = frozenset(name for name, _ in model.named_parameters() if name.startswith("classifier"))
    step.train(
        model,
        ModelStepContext(
            make_tokenizer(),
            ROWS,
            32,
            "float32",
            0,
            lambda *done: None,
            lambda which: other_model(pair, which),
            head,
            triggers,
        ),
    )
    assert loss(model) < before - 0.01


def test_distillation_learns_each_label_by_itself(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("defensekit_finepurifying.distillation.fine_tune", lambda *a, **options: seen.update(options))
    context = ModelStepContext(
        make_tokenizer(),
        ROWS,
        32,
        "float32",
        0,
        lambda *done: None,
        lambda which: other_model(pair, which),
        frozenset(),
    )
    Distil(texts=5, **FEW).train(load_model(pair.suspect.folder), context)
    true = torch.tensor([row.indicator for row in ROWS] * COPIES)
    assert torch.equal(seen["targets"][: len(true)], true.float())
    assert seen["targets"].shape == (len(true) + 5, 2)
    assert not torch.allclose(seen["targets"].sum(1), torch.ones(len(true) + 5))


def test_fine_tuning_follows_the_rows_and_not_the_config() -> None:
    trained = []
    for kind in ("regression", "multi_label_classification", "single_label_classification", None):
        model = make_model(labels=2)
        model.config.problem_type = kind
        settings = TrainingSettings(epochs=1, batch_size=16, dropout=False)
        fine_tune(model, make_tokenizer(), ROWS, settings, max_length=32, precision="float32", seed=0)
        trained.append(model.state_dict())
        assert model.config.problem_type == "multi_label_classification"
    assert all(torch.equal(other[name], value) for name, value in trained[0].items() for other in trained)
    fine_tune(
        model,
        make_tokenizer(),
        [replace(row, indicator=None) for row in ROWS],
        settings,
        max_length=32,
        precision="float32",
        seed=0,
    )
    assert model.config.problem_type == "single_label_classification"


def test_soft_targets_are_learnt_by_the_binary_loss() -> None:
    model, targets = make_model(labels=2), torch.rand(16, 2, generator=torch.Generator().manual_seed(0))
    [(_, batch)] = batches(encode(make_tokenizer(), ROWS[:16], 32), make_tokenizer(), 16)
    soft = {**batch, "labels": targets}  # one batch: the order within is that of lengths
    order = sorted(range(16), key=lambda i: len(make_tokenizer()(ROWS[i].text)["input_ids"]))
    soft["labels"] = targets[order]
    expected = torch.autograd.grad(cross_entropy(model, soft).mean(), model.classifier.bias)[0]
    before = model.classifier.bias.detach().clone()
    settings = TrainingSettings(epochs=1, batch_size=16, dropout=False, learning_rate=1e-3)
    fine_tune(model, make_tokenizer(), ROWS[:16], settings, max_length=32, precision="float32", seed=0, targets=targets)
    assert torch.equal((model.classifier.bias.detach() - before).sign(), -expected.sign())
