"""Fisher, batch gradients and Hutchinson against the dumbest code in float64."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from defensekit.components import Estimator, EstimatorContext
from defensekit.host.discovery import load_plugins
from defensekit.models.loading import load_model
from defensekit.testing.gradients import squared_gradients_by_loop
from defensekit.text import batches, encode
from defensekit_finepurifying.estimators.batch_gradient import BatchGradient
from defensekit_finepurifying.estimators.fisher import Fisher
from defensekit_finepurifying.estimators.fisher_mc import FisherMC
from defensekit_finepurifying.estimators.hutchinson import Hutchinson
from tests.conftest import slow_but
from tests.gradients.helpers import close, padded, rows
from tests.plugins.helpers import estimate
from tests.small_models import make_tokenizer

ESTIMATORS = load_plugins().names("estimator")

# -- squared gradients ---------------------------------------------------------------------------------------------


def test_fisher_is_a_mean_whatever_the_order_and_the_budget(lively: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [3, 7, 5, 6, 2]
    first = estimate(Fisher(), lively, lengths)
    sums, norms = squared_gradients_by_loop(load_model(lively), padded(rows(lengths))[0])
    expected = {name: tensor / 5 for name, tensor in sums.items()}
    close(first.statistics["curvature"], expected)
    assert first.facts["effective_rows"] == pytest.approx(float(norms.sum() ** 2 / (norms**2).sum()), rel=1e-4)
    monkeypatch.setattr("defensekit.gradients.tokens_within", lambda model, budget: budget // 2**20)
    close(estimate(Fisher(budget_mib=10), lively, lengths).statistics["curvature"], expected)


def test_fisher_of_rows_that_stand_twice(lively: Path) -> None:
    made = rows([3, 7, 5])
    once, twice = (
        Fisher().estimate(
            EstimatorContext(lambda w: load_model(lively), make_tokenizer(), some, 64, 0, lambda *done: None)
        )
        for some in (made, made * 2)
    )
    close(twice.statistics["curvature"], {n: t.double() for n, t in once.statistics["curvature"].items()}, rel=1e-3)
    assert twice.facts["effective_rows"] == pytest.approx(2 * once.facts["effective_rows"], rel=1e-4)


def test_fisher_mc_is_right_on_average_and_depends_on_the_seed_alone(lively: Path) -> None:
    lengths = [3, 7, 5]
    model, tokenizer = load_model(lively).double(), make_tokenizer()
    expected: dict[str, torch.Tensor] = {}
    for row in rows(lengths):
        [(_, batch)] = batches(encode(tokenizer, [row], 64), tokenizer, 1)
        sample = dict(batch)
        answers = model(**{k: v for k, v in sample.items() if k != "labels"}).logits.softmax(-1)[0].tolist()
        for label, chance in enumerate(answers):
            squares, _ = squared_gradients_by_loop(model, {**sample, "labels": torch.tensor([label])})
            for name, square in squares.items():
                expected[name] = expected.get(name, 0) + chance * square / len(lengths)
    found = estimate(FisherMC(samples=200), lively, lengths).statistics["curvature"]
    total, wanted = (sum(float(t.sum()) for t in tensors.values()) for tensors in (found, expected))
    assert total == pytest.approx(wanted, rel=0.15)
    close(found, expected, rel=0.3)
    once, again, other = (estimate(FisherMC(), lively, lengths, seed).statistics["curvature"] for seed in (1, 1, 5))
    assert all(torch.equal(once[name], again[name]) for name in once)
    small = estimate(FisherMC(budget_mib=1), lively, lengths, 1).statistics["curvature"]
    close(small, {name: tensor.double() for name, tensor in once.items()}, rel=1e-3)
    assert not all(torch.equal(once[name], other[name]) for name in once)


def test_batch_gradient_of_single_rows_is_the_fisher_and_of_many_is_not(lively: Path) -> None:
    lengths = [3, 7, 5, 6]
    fisher = estimate(Fisher(), lively, lengths).statistics["curvature"]
    single = estimate(BatchGradient(batch_size=1), lively, lengths).statistics["curvature"]
    close(single, {name: tensor.double() for name, tensor in fisher.items()}, rel=1e-3)
    batched = estimate(BatchGradient(batch_size=4), lively, lengths).statistics["curvature"]
    assert sum(float(t.sum()) for t in batched.values()) < sum(float(t.sum()) for t in fisher.values())


# -- the Hessian ---------------------------------------------------------------------------------------------------


def test_hutchinson_is_the_hessians_diagonal_within_its_error(lively: Path) -> None:
    lengths = [3, 7, 5, 4]
    found = estimate(Hutchinson(samples=100, batch_size=2), lively, lengths)
    model = load_model(lively).double()
    [batch] = padded(rows(lengths))
    values, errors = found.statistics["curvature"], found.statistics["curvature-error"]
    inside, checked, negative = 0, 0, 0
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for name in ("classifier.weight", "bert.encoder.layer.1.output.dense.bias", "bert.embeddings.LayerNorm.weight"):
            p = dict(model.named_parameters())[name]

            def loss(values: torch.Tensor, name: str = name) -> torch.Tensor:
                return torch.func.functional_call(
                    model, {name: values}, (), {k: v for k, v in batch.items() if k != "labels"}
                ).logits

            def mean(values: torch.Tensor, name: str = name) -> torch.Tensor:
                return nn.functional.cross_entropy(loss(values, name), batch["labels"])

            hessian = torch.autograd.functional.hessian(mean, p.detach()).reshape(p.numel(), -1).diagonal()
            expected, got = hessian.clamp(min=0), values[name].flatten().double()
            error = errors[name].flatten().double() + 1e-6 * expected.abs().max()
            inside += int(((got - expected).abs() <= 4 * error).sum())
            checked += p.numel()
            negative += int((hessian < 0).sum())
    assert inside >= 0.97 * checked
    assert 0 < negative < checked
    assert 0 < found.facts["negative"] < 1


def test_hutchinson_is_exact_where_the_hessian_is_diagonal(monkeypatch: pytest.MonkeyPatch, lively: Path) -> None:
    class Separate(nn.Module):
        """Three weights that do not meet."""

        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
            self.idle = nn.Parameter(torch.ones(2))

    model = Separate()
    monkeypatch.setattr("defensekit.gradients.cross_entropy", lambda m, b: (m.w**4).sum().expand(len(b["labels"])))
    context = EstimatorContext(lambda w: model, make_tokenizer(), rows([3, 4, 2]), 64, 0, lambda *done: None)  # type: ignore[arg-type, return-value]
    found = Hutchinson(samples=2, batch_size=2).estimate(context)
    torch.testing.assert_close(found.statistics["curvature"]["w"], 12 * model.w.detach() ** 2)
    assert float(found.statistics["curvature-error"]["w"].max()) < 1e-3
    assert not found.statistics["curvature"]["idle"].any()


@pytest.mark.parametrize("name", slow_but(ESTIMATORS, *(name for name in ESTIMATORS if name != "anp")))
def test_every_estimators_example_runs(name: str, lively: Path) -> None:
    found = load_plugins().find("estimator", name)
    [example] = re.findall(r"^ +(estimator: .*)$", found.__doc__ or "", re.MULTILINE)
    given = yaml.safe_load(example)["estimator"]
    assert given.pop("name") == name
    estimator = found.model_validate(given)
    assert isinstance(estimator, Estimator)
    estimate(estimator, lively, [3, 5])
