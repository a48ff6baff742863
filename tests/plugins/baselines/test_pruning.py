"""Pruning: what is scored, and what is pruned says nothing any more."""

from pathlib import Path

import pytest
import torch

from defensekit.components import EstimatorContext
from defensekit.components.tensors import Scored, Scores, TensorView
from defensekit.defense.scoring import Views, score
from defensekit.defense.selection import select
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import load_model
from defensekit.models.pair import Pair
from defensekit.testing.pico import pico
from defensekit.testing.watch import Handed
from defensekit_baselines.estimators.head_variance import HeadVariance
from defensekit_baselines.estimators.neuron_norm import NeuronNorm
from defensekit_baselines.pruning import Dormant, Lipschitz, SmallWeights, StaticHeads, Wanda
from defensekit_baselines.purifiers import Prune
from defensekit_baselines.scorers import Random
from defensekit_baselines.selectors import Units
from defensekit_finepurifying.selectors import Fraction, Threshold
from tests.gradients.helpers import rows
from tests.plugins.baselines.helpers import HEADS, OUT, measure, purified, views
from tests.small_models import make_base, make_suspect, make_tokenizer

# -- what is scored --------------------------------------------------------------------------------------------------


def test_pruning_may_take_what_never_moved(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    unmoved = Pair(Checkpoint(base), Checkpoint(make_suspect(tmp_path / "suspect", base, drift=0.0)))
    drifted, pruned = (score(views(unmoved), scorer) for scorer in (Random(), SmallWeights()))
    assert not any(scored.eligible.any() for scored in drifted.values())
    assert all(scored.eligible.all() for scored in pruned.values())
    chosen = select(pruned, Fraction(fraction=0.25))
    sizes = torch.cat([unmoved.block(name)[1].flatten() for name in chosen]).abs()
    taken = torch.cat([chosen[name].flatten() for name in chosen])
    assert sizes[taken].max() <= sizes[~taken].min()


def test_wanda_scores_linear_layers_alone(pair: Pair) -> None:
    weight = pair.block(OUT.format(0))[1]
    norm = torch.rand(weight.shape[1]).expand(weight.shape)
    scores = score(views(pair, {"input-norm": {OUT.format(0): norm}}), Wanda())
    assert torch.allclose(scores[OUT.format(0)].score, -(weight.abs() * norm))
    assert [name for name, scored in scores.items() if scored.eligible.any()] == [OUT.format(0)]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "gpt2", "llama"])
def test_clp_finds_the_neuron_whose_bound_stands_out(architecture: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", architecture)
    found = Pair(Checkpoint(base), Checkpoint(make_suspect(tmp_path / "suspect", base)))
    scores = score(views(found), Lipschitz())
    [first, *_] = names = [name for name, scored in scores.items() if scored.eligible.any()]
    assert len(names) == (4 if architecture == "llama" else 2)  # two layers; Llama's have a gate
    across = 0 if architecture == "gpt2" else 1
    weight = found.block(first)[1].double()
    assert weight.shape[1 - across] == (64 if architecture == "gpt2" else 32)
    norms = weight.norm(dim=across)
    expected = (norms - norms.mean()) / norms.std()
    got = scores[first].score.select(across, 0)
    assert torch.allclose(got.double(), expected, atol=1e-4)
    loud = TensorView(first, weight.float(), (weight * 1).float(), 0)
    loud.suspect.select(1 - across, 7).mul_(30)
    taken = select(Scores({first: Scored(Lipschitz().score(loud), loud.suspect != 0, "a")}), Threshold(above=3))
    assert torch.nonzero(taken[first].all(across)).flatten().tolist() == [7]


# -- neurons and heads: what is pruned says nothing any more ---------------------------------------------------------


def answers(folder: Path, change: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    model = load_model(folder)
    batch = make_tokenizer()(["the bright film", "a"], padding=True, return_tensors="pt")
    with torch.no_grad():
        for name, tensor in (change or {}).items():
            dict(model.named_parameters())[f"bert.{name}"].add_(tensor)
        return model(batch["input_ids"], batch["attention_mask"]).logits


def test_a_pruned_neuron_is_dormant_and_says_nothing(pair: Pair, tmp_path: Path) -> None:
    found = measure(NeuronNorm(), pair.suspect.folder).statistics
    assert {name.removeprefix("bert.") for name in found["neuron-norm"]} == {OUT.format(0), OUT.format(1)}
    made = views(pair, found)
    _, chosen = purified(
        pair, made, Dormant(), Units(unit="column", fraction=0.25, scope="layer"), [Prune()], tmp_path / "p"
    )
    for layer in (0, 1):
        norms = found["neuron-norm"]["bert." + OUT.format(layer)][0]
        pruned = chosen[OUT.format(layer)].all(0)
        assert pruned.tolist() == chosen[OUT.format(layer)].any(0).tolist()
        assert int(pruned.sum()) == 8
        assert norms[pruned].max() <= norms[~pruned].min()
    # Whatever a pruned neuron is fed, the answers stay; another neuron's matter.
    into = torch.zeros(32, 16)
    into[chosen[OUT.format(1)].all(0)] = 5.0
    change = {"encoder.layer.1.intermediate.dense.weight": into}
    assert torch.equal(answers(tmp_path / "p"), answers(tmp_path / "p", change))
    assert not torch.equal(answers(pair.suspect.folder), answers(pair.suspect.folder, change))


def test_pure_measures_heads_as_a_loop_over_rows_does(pair: Pair) -> None:
    made = rows([3, 7, 5, 2])
    found = measure(HeadVariance(batch_size=2), pair.suspect.folder, made).statistics["head-variance"]
    model, tokenizer = load_model(pair.suspect.folder).double(), make_tokenizer()
    model.set_attn_implementation("eager")
    for layer in (0, 1):
        expected = torch.zeros(2, dtype=torch.float64)
        for row in made:
            batch = tokenizer(row.text, return_tensors="pt")
            out = model(batch["input_ids"], batch["attention_mask"], output_attentions=True)
            expected += out.attentions[layer][0, :, 0].var(dim=1).detach() / len(made)
        got = found[f"bert.{HEADS.format(layer)}"]
        assert got.shape == (16, 16)
        assert torch.allclose(got[0].double(), expected.repeat_interleave(8), rtol=1e-4)


def test_a_matrix_that_all_layers_share_has_the_mean_over_them() -> None:
    estimator = HeadVariance(batch_size=3)
    found = estimator.estimate(pico().for_estimator(estimator, Handed())).statistics["head-variance"]
    model = pico().load()[0].double().eval()
    model.set_attn_implementation("eager")
    expected = torch.zeros(2, dtype=torch.float64)
    for batch in pico().samples():
        for layer in model(**batch, output_attentions=True).attentions:
            expected += layer[0, :, 0].var(dim=1).detach() / 2 / len(pico().rows)
    [got] = found.values()
    assert torch.allclose(got[0].double(), expected.repeat_interleave(8), rtol=1e-4)


def test_pure_prunes_whole_heads_and_spares_one_a_layer(pair: Pair, tmp_path: Path) -> None:
    statistics = measure(HeadVariance(), pair.suspect.folder).statistics
    selector = Units(unit="head", fraction=1.0, spare=1)
    _, chosen = purified(pair, views(pair, statistics), StaticHeads(), selector, [Prune()], tmp_path / "p")
    values = torch.zeros(16, 16)
    for layer in (0, 1):
        variances = statistics["head-variance"]["bert." + HEADS.format(layer)][0]
        pruned = chosen[HEADS.format(layer)].all(0)
        assert pruned.tolist() in ([True] * 8 + [False] * 8, [False] * 8 + [True] * 8)
        assert variances[pruned].max() <= variances[~pruned].min()
    values[pruned] = 5.0
    change = {"encoder.layer.1.attention.self.value.weight": values}
    assert torch.equal(answers(tmp_path / "p"), answers(tmp_path / "p", change))
    assert not torch.equal(answers(pair.suspect.folder), answers(pair.suspect.folder, change))


# GPT-2 numbers positions from the first token of a batch: padding in front of a row makes another row of it.
@pytest.mark.parametrize(("architecture", "side"), [("gpt2", "right"), ("llama", "right"), ("llama", "left")])
def test_of_models_that_read_from_left_to_right_the_last_token_counts(
    architecture: str, side: str, tmp_path: Path
) -> None:
    suspect = make_suspect(tmp_path / "suspect", make_base(tmp_path / "base", architecture), drift=0.3)
    made, tokenizer = rows([3, 7, 5, 2]), make_tokenizer()
    tokenizer.padding_side = side
    context = EstimatorContext(lambda which: load_model(suspect), tokenizer, made, 64, 0, lambda *done: None)
    found = HeadVariance(batch_size=2).estimate(context).statistics["head-variance"]
    model = load_model(suspect).double()
    model.set_attn_implementation("eager")
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for row in made:
        batch = tokenizer(row.text, return_tensors="pt")
        out = model(**batch, output_attentions=True)
        expected += torch.stack([layer[0, :, -1].var(dim=1) for layer in out.attentions]).detach() / len(made)
    for heads, got in zip(expected, found.values(), strict=True):
        columns = got[:, 0] if architecture == "gpt2" else got[0]
        assert torch.allclose(columns.double(), heads.repeat_interleave(8), rtol=1e-3)
        assert torch.equal(got, columns[:, None].expand(16, 16) if architecture == "gpt2" else columns.expand(16, 16))


# -- GPT-2, whose matrices lie the other way round ---------------------------------------------------------------------


def views_of_gpt2(pair: Pair, statistics: dict[str, dict[str, torch.Tensor]]) -> Views:
    tensors = {
        name: {own.removeprefix("transformer."): t for own, t in found.items()} for name, found in statistics.items()
    }
    return Views(pair, 0, {name: found.get for name, found in tensors.items()})


def moves(folder: Path, name: str, change: torch.Tensor) -> bool:
    """Whether a change of weights changes the answers."""
    model = load_model(folder)
    batch = make_tokenizer()(["the bright film", "a"], padding=True, return_tensors="pt")
    with torch.no_grad():
        before = model(**batch).logits
        dict(model.named_parameters())[f"transformer.{name}"].add_(change)
        return not torch.equal(before, model(**batch).logits)


def test_a_pruned_neuron_of_gpt2_is_dormant_and_says_nothing(turned: Pair, tmp_path: Path) -> None:
    found = measure(NeuronNorm(), turned.suspect.folder).statistics
    assert list(found["neuron-norm"]) == [f"transformer.h.{i}.mlp.c_proj.weight" for i in (0, 1)]
    selector = Units(unit="column", fraction=0.25, scope="layer")
    _, chosen = purified(turned, views_of_gpt2(turned, found), Dormant(), selector, [Prune()], tmp_path / "p")
    for layer in (0, 1):
        norms = found["neuron-norm"][f"transformer.h.{layer}.mlp.c_proj.weight"][:, 0]
        pruned = chosen[f"h.{layer}.mlp.c_proj.weight"].all(1)
        assert pruned.tolist() == chosen[f"h.{layer}.mlp.c_proj.weight"].any(1).tolist()
        assert int(pruned.sum()) == 16
        assert norms[pruned].max() <= norms[~pruned].min()
    into = torch.zeros(16, 64)
    into[:, pruned] = 5.0
    assert not moves(tmp_path / "p", "h.1.mlp.c_fc.weight", into)
    assert moves(turned.suspect.folder, "h.1.mlp.c_fc.weight", into)


def test_a_pruned_head_of_gpt2_says_nothing(turned: Pair, tmp_path: Path) -> None:
    statistics = measure(HeadVariance(), turned.suspect.folder).statistics
    selector = Units(unit="head", fraction=1.0, spare=1)
    made = views_of_gpt2(turned, statistics)
    _, chosen = purified(turned, made, StaticHeads(), selector, [Prune()], tmp_path / "p")
    variances = statistics["head-variance"]["transformer.h.1.attn.c_proj.weight"][:, 0]
    pruned = chosen["h.1.attn.c_proj.weight"].all(1)
    assert pruned.tolist() in ([True] * 8 + [False] * 8, [False] * 8 + [True] * 8)
    assert variances[pruned].max() <= variances[~pruned].min()
    values = torch.zeros(16, 48)
    values[:, 32:][:, pruned] = 5.0  # of queries, keys and values side by side
    assert not moves(tmp_path / "p", "h.1.attn.c_attn.weight", values)
    assert moves(turned.suspect.folder, "h.1.attn.c_attn.weight", values)
