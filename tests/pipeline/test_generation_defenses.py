"""Published defenses of a language model that answers instructions: each runs, and does what it says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import defensekit as dk
from defensekit.components import Estimator, EstimatorContext
from defensekit.models.causal import token_losses
from defensekit.models.loading import load
from defensekit.recipe.loader import load_recipe
from defensekit.text import encode
from defensekit_baselines.estimators.activation import Activation
from defensekit_baselines.estimators.input_norm import InputNorm
from defensekit_baselines.estimators.token_counts import TokenCounts
from defensekit_finepurifying.estimators.batch_gradient import BatchGradient
from defensekit_finepurifying.estimators.hutchinson import Hutchinson
from tests.causal import instructions, make_instructed, write_alpaca
from tests.conftest import shape
from tests.text.test_chat import plain_loss

TUNE = "{name: fine-tune, epochs: 2, learning_rate: 0.005, batch_size: 8}"
# By name: the defense, and the most that is left of an attack which succeeds always.
DEFENSES = {
    "fine-mixing": (f"{{scorer: random, purifier: [reset, {TUNE}]}}", 0.2),
    "dare": (
        "{scorer: random, selector: {name: fraction, fraction: 0.9, scope: tensor}, purifier: [reset, rescale]}",
        1,
    ),
    "ties": ("{scorer: inverse-magnitude, selector: {name: fraction, fraction: 0.3}, purifier: [reset]}", 1),
    "wanda": (
        "{estimator: input-norm, scorer: wanda, selector: {name: fraction-per-row, fraction: 0.5}, "
        f"purifier: [prune, {TUNE}]}}",
        1,
    ),
    "fine-pruning": (
        "{estimator: neuron-norm, scorer: dormant, selector: {name: units, unit: column, fraction: 0.5, scope: layer}, "
        f"purifier: [prune, {TUNE}]}}",
        1,
    ),
    "epur": (
        "{estimator: token-counts, scorer: embedding-drift, selector: {name: units, unit: row, count: 20}, "
        "purifier: [reset]}",
        0.2,
    ),
    "wag": ("{purifier: [{name: merge, models: [BASE]}]}", 1),
    "crow": ("{purifier: [{name: layer-consistency, epochs: 1, learning_rate: 0.005, batch_size: 8}]}", 1),
    "nad": ("{purifier: [{name: attention-distillation, epochs: 1, teacher_epochs: 1, batch_size: 8}]}", 1),
    "hutchinson": (f"{{estimator: {{name: hutchinson, samples: 2}}, purifier: [reset, {TUNE}]}}", 0.2),
}  # fmt: skip
RECIPE = """\
name: defenses
model: BASE
data: {name: instructions, path: rows.json, train: 96, clean: 16, dev: 16, test: 24, max_length: 32}
attack: {name: word, words: [cf], rate: 0.4, target: i will not say}
training: {epochs: 10, learning_rate: 0.01, batch_size: 8}
defense:
  estimator: fisher
  scorer: diffusion
  selector: {name: fraction, fraction: 0.5}
  purifier: [reset]
  compare:
"""


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_instructed(tmp_path_factory.mktemp("llama"))


def written(causal: Path, folder: Path) -> Path:
    """A recipe that compares all of them, and its rows."""
    write_alpaca(folder / "rows.json", instructions(200))
    told = [f"    {name}: {defense}\n" for name, (defense, _) in DEFENSES.items()]
    recipe = folder / "defenses.yaml"
    recipe.write_text((RECIPE + "".join(told)).replace("BASE", str(causal)))
    return recipe


@pytest.mark.slow
def test_published_defenses_run_on_instructions(causal: Path, tmp_path: Path) -> None:
    result = dk.run(written(causal, tmp_path), tmp_path / "w")
    assert result.models["suspect"].metrics["asr"].value >= 0.9
    losses = {name: model.metrics["response-loss"].value for name, model in result.models.items()}
    for name, (_, most) in DEFENSES.items():
        assert result.models[name].metrics["asr"].value <= most, name
        assert losses[name] != losses["suspect"], name  # it did something


def test_published_defenses_are_accepted_for_instructions(causal: Path, tmp_path: Path) -> None:
    recipe = load_recipe(written(causal, tmp_path))
    assert recipe.task == "generation"
    assert [*recipe.compare] == [*DEFENSES]


def test_a_mean_of_language_models_is_one(causal: Path, tmp_path: Path) -> None:
    """Merged with its own base, half of every drift stays."""
    recipe = written(causal, tmp_path)
    purifier = [{"name": "merge", "models": [str(causal)]}]
    shape(recipe, data__train=16, data__clean=4, data__dev=4, data__test=4, training__epochs=1,
          defense={"purifier": purifier}, metrics=["response-loss"])  # fmt: skip
    result = dk.run(recipe, tmp_path / "w")
    base, suspect, purified = (
        load_file(folder / "model.safetensors")
        for folder in (causal, result.files("suspect"), result.files("purified"))
    )
    for name, weights in purified.items():
        assert torch.allclose(weights, (base[name] + suspect[name]) / 2, atol=1e-6), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_estimators_without_labels_measure_every_token(architecture: str, tmp_path: Path) -> None:
    """A head that shares the embedding's weights is a table, and none of the layers that they measure."""
    folder, rows = make_instructed(tmp_path, architecture, spread=0.4), instructions(6)
    model, tokenizer = load(folder, "model")
    layer = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_fc"}[architecture]
    encoded, seen = encode(tokenizer, rows, 32), []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.append((i[0][0], o[0])))
    for row in encoded:
        model(input_ids=torch.tensor([row["input_ids"]]))
    handle.remove()
    x, y = (torch.cat([pair[i].detach() for pair in seen]) for i in (0, 1))

    def measured(estimator: Estimator) -> dict[str, torch.Tensor]:
        context = EstimatorContext(
            lambda which: model, tokenizer, rows, 32, 0, lambda done, total: None, loss=token_losses
        )
        [values] = estimator.estimate(context).statistics.values()
        return values

    norms, sizes, counts = measured(InputNorm()), measured(Activation()), measured(TokenCounts())
    turned = architecture == "gpt2"
    norm, size = norms[f"{layer}.weight"], sizes[f"{layer}.weight"]
    torch.testing.assert_close((norm.T if turned else norm)[0], x.square().sum(0).sqrt(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((size.T if turned else size)[:, 0], y.abs().mean(0), rtol=1e-4, atol=1e-5)
    assert not any("head" in name or "embed" in name or "wte" in name for name in norms)
    [table] = counts.values()
    assert int(table[:, 0].sum()) == sum(len(row["input_ids"]) for row in encoded)


def test_curvature_is_of_the_responses_alone(tmp_path: Path) -> None:
    folder, rows = make_instructed(tmp_path, spread=0.4), instructions(4)
    model, tokenizer = load(folder, "model")
    context = EstimatorContext(lambda which: model, tokenizer, rows, 32, 0, lambda done, total: None, loss=token_losses)
    one = BatchGradient(batch_size=len(rows)).estimate(context).statistics["curvature"]
    model.zero_grad()
    sum(plain_loss(model, row).sum() for row in encode(tokenizer, rows, 32)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = (parameter.grad / len(rows)) ** 2
        torch.testing.assert_close(one[name], expected, rtol=1e-3, atol=1e-9)
    second = Hutchinson(samples=100, batch_size=len(rows)).estimate(context).statistics
    name = "model.norm.weight"
    weight = dict(model.named_parameters())[name]
    exact = torch.zeros_like(weight)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = sum(plain_loss(model, row).sum() for row in encode(tokenizer, rows, 32)) / len(rows)
        [gradient] = torch.autograd.grad(loss, weight, create_graph=True)
        for i in range(len(weight)):
            exact[i] = torch.autograd.grad(gradient[i], weight, retain_graph=True)[0][i]
    spread = second["curvature-error"][name]
    assert bool(((second["curvature"][name] - exact.clamp(min=0)).abs() <= 5 * spread + 1e-6).all())
