"""Gradients and estimators against the dumbest loop in float64."""

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit.checkpoint import load_model
from defensekit.components import EstimatorContext
from defensekit.errors import DefenseKitError
from defensekit.gradients import mean_gradient, squared_gradients
from defensekit.text import Row, batches, encode
from defensekit_finepurifying.estimators import BatchGradient, Fisher
from tests.conftest import ARCHITECTURES, FILLERS, make_tokenizer


def classifier(architecture: str, labels: int = 2) -> torch.nn.Module:
    config = ARCHITECTURES[architecture]()
    config.num_labels, config.pad_token_id = labels, 0
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def rows(lengths: list[int], labels: int = 2) -> list[Row]:
    return [
        Row(i, " ".join(FILLERS[(i + j) % len(FILLERS)] for j in range(n)), i % labels) for i, n in enumerate(lengths)
    ]


def oracle(model: torch.nn.Module, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One sample, one backward pass, one square, all in float64."""
    model = model.double()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for sample in samples:
        logits = model(**{name: values for name, values in sample.items() if name != "labels"}).logits
        loss = -torch.log_softmax(logits, -1)[0, int(sample["labels"])]
        for name, p in model.named_parameters():
            (gradient,) = torch.autograd.grad(loss, p, retain_graph=True, allow_unused=True)
            if gradient is not None:
                sums[name] += gradient**2
    model.float()
    return sums


def singles(made: list[Row]) -> list[dict[str, torch.Tensor]]:
    tokenizer = make_tokenizer()
    return [dict(batch) for _, batch in batches(encode(tokenizer, made, 64), tokenizer, 1)]


def close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rel: float = 1e-4) -> None:
    """Every tensor within ``rel`` of its norm; a key's bias shifts every attention score alike, so its gradient is 0
    but for rounding, far below anything else in the model."""
    assert got.keys() == expected.keys()
    floor = 1e-12 * max(float(tensor.norm()) for tensor in expected.values())
    for name, tensor in expected.items():
        assert float((got[name].double() - tensor).norm()) <= rel * float(tensor.norm()) + floor, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_squared_gradients_are_the_loops(architecture: str) -> None:
    model, samples = classifier(architecture), singles(rows([3, 7, 5]))
    got, norms = squared_gradients(model, samples)
    expected = oracle(model, samples)
    close(got, expected)
    assert float(norms.sum()) == pytest.approx(float(sum(tensor.sum() for tensor in expected.values())), rel=1e-4)
    assert len(norms) == 3


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), labels=st.integers(2, 4))
@settings(deadline=None, max_examples=15)
def test_squared_gradients_for_any_rows(lengths: list[int], labels: int) -> None:
    model, samples = classifier("bert", labels), singles(rows(lengths, labels))
    close(squared_gradients(model, samples)[0], oracle(model, samples))


def test_the_model_is_as_before() -> None:
    model = classifier("bert").train()
    model.classifier.weight.requires_grad_(False)
    model.bert.embeddings.word_embeddings.weight.grad = torch.ones_like(model.bert.embeddings.word_embeddings.weight)
    state = torch.random.get_rng_state()
    sums, _ = squared_gradients(model, singles(rows([4])))
    assert "classifier.weight" not in sums
    assert all(module.training for module in model.modules())
    assert bool((model.bert.embeddings.word_embeddings.weight.grad == 1).all())
    assert model.bert.encoder.layer[0].output.dense.weight.grad is None
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_gradient_that_is_not_finite_names_its_tensor() -> None:
    model = classifier("bert")
    model.bert.encoder.layer[1].output.dense.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DefenseKitError, match=r"gradient of bert.encoder.layer.1.output.dense.weight is NaN"):
        squared_gradients(model, singles(rows([4])))
    assert all(p.grad is None for p in model.parameters())


def test_mean_gradient_is_the_batchs() -> None:
    model, tokenizer = classifier("bert"), make_tokenizer()
    made = rows([3, 7, 5, 6])
    [(_, batch)] = batches(encode(tokenizer, made, 64), tokenizer, 4)
    [got] = mean_gradient(model, [batch])
    model.double()
    for sample in singles(made):
        logits = model(**{name: values for name, values in sample.items() if name != "labels"}).logits
        (torch.nn.functional.cross_entropy(logits, sample["labels"]) / 4).backward()
    expected = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    floored = {name: gradient for name, gradient in expected.items() if not name.endswith("key.bias")}
    close({name: got[name] for name in floored}, floored, rel=1e-3)  # rows of two labels cancel


def context(suspect: Path, made: list[Row]) -> EstimatorContext:
    return EstimatorContext(lambda which: load_model(suspect), make_tokenizer(), made, 64, 0, lambda done, total: None)


def test_fisher_is_a_mean_whatever_the_order(suspect: Path) -> None:
    made = rows([3, 7, 5, 6, 2])
    first, second = Fisher().estimate(context(suspect, made)), Fisher().estimate(context(suspect, made[::-1]))
    expected = {name: tensor / 5 for name, tensor in oracle(load_model(suspect), singles(made)).items()}
    close(first.statistics["curvature"], expected)
    close(second.statistics["curvature"], expected)
    twice = Fisher().estimate(context(suspect, made * 2))
    close(twice.statistics["curvature"], expected)
    assert 1 <= first.facts["effective_rows"] <= 5
    assert twice.facts["effective_rows"] == pytest.approx(2 * first.facts["effective_rows"], rel=1e-6)


def test_batch_gradient_of_single_rows_is_the_fisher_and_of_many_is_not(suspect: Path) -> None:
    made = rows([3, 7, 5, 6])
    fisher = Fisher().estimate(context(suspect, made)).statistics["curvature"]
    close(BatchGradient(batch_size=1).estimate(context(suspect, made)).statistics["curvature"],
          {name: tensor.double() for name, tensor in fisher.items()})  # fmt: skip
    batched = BatchGradient(batch_size=4).estimate(context(suspect, made)).statistics["curvature"]
    assert sum(float(tensor.sum()) for tensor in batched.values()) < sum(
        float(tensor.sum()) for tensor in fisher.values()
    )
