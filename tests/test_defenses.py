"""The field's defenses that take and change weights: each does what makes it what it is."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from defensekit.components import Estimate, Estimator, EstimatorContext, Scorer, Selector
from defensekit.components.tensors import Scored, Scores, TensorView
from defensekit.defense.purification import purify
from defensekit.defense.scoring import Views, score
from defensekit.defense.selection import select
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import load_model
from defensekit.models.pair import Pair
from defensekit.testing.pico import pico
from defensekit.testing.watch import Handed
from defensekit.text import Row
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit_baselines.embeddings import EmbeddingDrift
from defensekit_baselines.estimators.head_variance import HeadVariance as MeasureHeads
from defensekit_baselines.estimators.neuron_masks import AdversarialNeuronPruning
from defensekit_baselines.estimators.neuron_norm import NeuronNorm
from defensekit_baselines.merging import Merge, Rescale
from defensekit_baselines.pruning import Dormant, HeadVariance, Lipschitz, SmallWeights, Wanda
from defensekit_baselines.purifiers import Prune
from defensekit_baselines.scorers import Random
from defensekit_baselines.selectors import FractionPerRow, Units
from defensekit_finepurifying.purifiers import Reset
from defensekit_finepurifying.selectors import Fraction, Threshold
from tests.conftest import make_base, make_sentences, make_suspect, make_tokenizer
from tests.test_gradients import rows

ROWS = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(make_sentences(24))]
OUT = "encoder.layer.{}.output.dense.weight"
HEADS = "encoder.layer.{}.attention.output.dense.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    base = make_base(folder / "base")
    return Pair(Checkpoint(base), Checkpoint(make_suspect(folder / "suspect", base, drift=0.3)))


def measure(estimator: Estimator, folder: Path, made: list[Row] = ROWS) -> Estimate:
    context = EstimatorContext(lambda which: load_model(folder), make_tokenizer(), made, 64, 0, lambda *done: None)
    return estimator.estimate(context)


def views(pair: Pair, statistics: dict[str, dict[str, torch.Tensor]] | None = None) -> Views:
    found = {
        name: {own.removeprefix("bert."): tensor for own, tensor in tensors.items()}
        for name, tensors in (statistics or {}).items()
    }
    return Views(pair, 0, {name: tensors.get for name, tensors in found.items()})


def purified(pair: Pair, made: Views, scorer: Scorer, selector: Selector, steps: list[Any], folder: Path) -> Any:
    """(weights by the pair's names, selection)."""
    chosen = select(score(made, scorer), selector)
    nothing: Any = lambda *done: None  # noqa: E731
    purify(made.pair, chosen, steps, ROWS, folder, max_length=64, precision="float32", seed=0, report=nothing)
    return {n.removeprefix("bert."): t for n, t in load_file(folder / "model.safetensors").items()}, chosen


# -- units ---------------------------------------------------------------------------------------------------------


@st.composite
def some_scores(draw: st.DrawFn) -> Scores:
    tensors = {}
    for i in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 4)), 2 * draw(st.integers(1, 3)))
        shape = shape if draw(st.booleans()) else shape[:1]
        count = math.prod(shape)
        values = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=count, max_size=count))
        eligible = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        layer = f"layer.{i % 2}"
        tensors[f"{layer}.t{i}"] = Scored(torch.tensor(values).view(shape), torch.tensor(eligible).view(shape), layer)
    return Scores(tensors, head_size=2)


def by_hand(scores: Scores, unit: str) -> list[tuple[float, str, str, list[tuple[int, ...]]]]:
    """(score, layer, tensor, places) of every unit that has an eligible place, best first."""
    units: dict[tuple[str, int], list[tuple[int, ...]]] = {}
    for name, scored in scores.items():
        for place in torch.nonzero(scored.eligible).tolist():
            if unit in ("column", "head") and len(place) == 1:
                continue
            number = {"row": place[0], "tensor": 0, "column": place[-1], "head": place[-1] // 2}[unit]
            units.setdefault((name, number), []).append(tuple(place))
    found = [
        (sum(float(scores[name].score[p]) for p in places) / len(places), scores[name].layer, name, places)
        for (name, _), places in sorted(units.items())
    ]
    return sorted(found, key=lambda one: -one[0])


@given(
    scores=some_scores(),
    unit=st.sampled_from(["row", "column", "head", "tensor"]),
    scope=st.sampled_from(["global", "layer", "tensor"]),
    fraction=st.floats(0, 1),
    spare=st.integers(0, 2),
)
@settings(deadline=None)
def test_units_are_the_best_by_their_mean(scores: Scores, unit: Any, scope: Any, fraction: float, spare: int) -> None:
    got = select(scores, Units(unit=unit, fraction=fraction, scope=scope, spare=spare))
    every = by_hand(scores, unit)
    spared: list[Any] = []
    for layer in {one[1] for one in every}:
        spared += sorted((one for one in every if one[1] == layer), key=lambda one: one[0])[:spare]
    expected: set[tuple[str, tuple[int, ...]]] = set()
    for group in {"global": {""}, "layer": {one[1] for one in every}, "tensor": {one[2] for one in every}}[scope]:
        inside = [one for one in every if group in ("", one[1], one[2])]
        for one in [one for one in inside if one not in spared][: round(fraction * len(inside))]:
            expected.update((one[2], place) for place in one[3])
    assert {(name, tuple(p)) for name, chosen in got.items() for p in torch.nonzero(chosen).tolist()} == expected


def test_a_count_of_units() -> None:
    scored = Scored(torch.arange(12.0).view(4, 3), torch.ones(4, 3, dtype=torch.bool), "a")
    scores = Scores({"a": scored})
    assert Units(unit="row", count=2).select(scores)["a"].all(1).tolist() == [False, False, True, True]
    assert Units(unit="row", count=9).select(scores)["a"].all()
    assert Units(unit="row", count=0).takes_nothing()
    for given_ in ({}, {"count": 1, "fraction": 0.5}):
        with pytest.raises(ValidationError, match="either fraction or count"):
            Units(unit="row", **given_)
    with pytest.raises(DefenseKitError, match="does not say how large"):
        Units(unit="head", count=1).select(scores)
    with pytest.raises(DefenseKitError, match="3 columns, which are no heads of 2"):
        Units(unit="head", count=1).select(Scores({"a": scored}, head_size=2))


@given(scores=some_scores(), fraction=st.floats(0, 1))
@settings(deadline=None)
def test_a_fraction_per_row(scores: Scores, fraction: float) -> None:
    got = select(scores, FractionPerRow(fraction=fraction))
    for name, scored in scores.items():
        width = scored.score.shape[-1]
        for row, may, chosen in zip(
            *(t.reshape(-1, width).tolist() for t in (scored.score, scored.eligible, got[name])), strict=True
        ):
            order = sorted((i for i in range(width) if may[i]), key=lambda i: -row[i])
            best = set(order[: round(fraction * len(order))])
            assert {i for i in range(width) if chosen[i]} == best


# -- what is scored --------------------------------------------------------------------------------------------------


def test_epur_takes_rows_of_the_table_by_drift_over_log_count(pair: Pair) -> None:
    table = "embeddings.word_embeddings.weight"
    base, suspect = (t.double() for t in pair.block(table))
    counts = torch.arange(len(base)).float() ** 2
    made = views(pair, {"token-counts": {table: counts[:, None].expand(base.shape)}})
    scores = score(made, EmbeddingDrift())
    for i in range(len(base)):
        expected = float((suspect[i] - base[i]).norm()) / math.log(max(float(counts[i]), 20))
        assert scores[table].score[i].tolist() == pytest.approx([expected] * 16, rel=1e-5)
    chosen = select(scores, Units(unit="row", count=5))
    assert {name for name, taken in chosen.items() if taken.any()} == {table}
    assert int(chosen[table].any(1).sum()) == 5


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
    found = measure(MeasureHeads(batch_size=2), pair.suspect.folder, made).statistics["head-variance"]
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
    found = MeasureHeads(batch_size=3).estimate(pico().for_estimator(Handed())).statistics["head-variance"]
    model = pico().load()[0].double().eval()
    model.set_attn_implementation("eager")
    expected = torch.zeros(2, dtype=torch.float64)
    for batch in pico().samples():
        for layer in model(**batch, output_attentions=True).attentions:
            expected += layer[0, :, 0].var(dim=1).detach() / 2 / len(pico().rows)
    [got] = found.values()
    assert torch.allclose(got[0].double(), expected.repeat_interleave(8), rtol=1e-4)


def test_pure_prunes_whole_heads_and_spares_one_a_layer(pair: Pair, tmp_path: Path) -> None:
    statistics = measure(MeasureHeads(), pair.suspect.folder).statistics
    selector = Units(unit="head", fraction=1.0, spare=1)
    _, chosen = purified(pair, views(pair, statistics), HeadVariance(), selector, [Prune()], tmp_path / "p")
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
    found = MeasureHeads(batch_size=2).estimate(context).statistics["head-variance"]
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


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("gpt2")
    base = make_base(folder / "base", "gpt2")
    return Pair(Checkpoint(base), Checkpoint(make_suspect(folder / "suspect", base, drift=0.3)))


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
    statistics = measure(MeasureHeads(), turned.suspect.folder).statistics
    selector = Units(unit="head", fraction=1.0, spare=1)
    made = views_of_gpt2(turned, statistics)
    _, chosen = purified(turned, made, HeadVariance(), selector, [Prune()], tmp_path / "p")
    variances = statistics["head-variance"]["transformer.h.1.attn.c_proj.weight"][:, 0]
    pruned = chosen["h.1.attn.c_proj.weight"].all(1)
    assert pruned.tolist() in ([True] * 8 + [False] * 8, [False] * 8 + [True] * 8)
    assert variances[pruned].max() <= variances[~pruned].min()
    values = torch.zeros(16, 48)
    values[:, 32:][:, pruned] = 5.0  # of queries, keys and values side by side
    assert not moves(tmp_path / "p", "h.1.attn.c_attn.weight", values)
    assert moves(turned.suspect.folder, "h.1.attn.c_attn.weight", values)


def test_anp_masks_the_neuron_of_gpt2_that_does_harm(turned: Pair, tmp_path: Path) -> None:
    model = load_model(turned.suspect.folder)
    with torch.no_grad():
        model.score.weight.copy_(torch.stack([torch.zeros(16), torch.linspace(-1, 1, 16)]))
        mlp = model.transformer.h[1].mlp
        mlp.c_fc.bias[5] = 3.0
        mlp.c_proj.weight[5] = 3 * torch.linspace(-1, 1, 16)
    model.save_pretrained(tmp_path)
    negative = [Row(row.id, row.text, 0) for row in ROWS]
    found = measure(AdversarialNeuronPruning(iterations=40, batch_size=24), tmp_path, negative).statistics
    masks = found["neuron-mask"]["transformer.h.1.mlp.c_proj.weight"]
    assert masks.shape == (64, 16)
    assert torch.equal(masks, masks[:, :1].expand(masks.shape))
    assert float(masks[5, 0]) == 0
    assert float(masks[:, 0].median()) > 0.5


@given(scores=st.lists(st.lists(st.integers(-5, 5), min_size=4, max_size=4), min_size=2, max_size=6))
@settings(deadline=None)
def test_rows_and_columns_are_outputs_and_inputs_however_they_are_stored(scores: list[list[int]]) -> None:
    score = torch.tensor(scores).float()
    eligible = score != 0
    there = {"h.0.dense.weight": Scored(score, eligible, "h.0")}
    turned = {"h.0.mlp.c_fc.weight": Scored(score.T, eligible.T, "h.0")}
    selectors: list[Selector] = [Units(unit=unit, fraction=0.5) for unit in ("row", "column", "head", "tensor")]  # type: ignore[arg-type]
    for selector in (*selectors, FractionPerRow(fraction=0.5)):
        [one], [other] = (selector.select(Scores(made, 2)).values() for made in (there, turned))
        assert torch.equal(one, other.T)  # type: ignore[arg-type, union-attr]


def test_anp_masks_the_neuron_that_does_harm(tmp_path: Path) -> None:
    folder = make_suspect(tmp_path / "suspect", make_base(tmp_path / "base"), drift=0.3)
    rates = AdversarialNeuronPruning(iterations=40, batch_size=24)
    model = load_model(folder)
    with torch.no_grad():  # rows that are all labelled 0, and a neuron that says 1
        model.classifier.weight.zero_()
        model.classifier.weight[1] = torch.linspace(-1, 1, 16)
        model.bert.pooler.dense.weight.copy_(torch.eye(16))
        layer = model.bert.encoder.layer[1]
        layer.intermediate.dense.bias[5] = 3.0
        layer.output.dense.weight[:, 5] = 3 * torch.linspace(-1, 1, 16)
    model.save_pretrained(folder)
    negative = [Row(row.id, row.text, 0) for row in ROWS]
    before = {name: p.clone() for name, p in load_model(folder).named_parameters()}
    state = torch.random.get_rng_state()
    found = measure(rates, folder, negative).statistics["neuron-mask"]
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(p, before[name]) for name, p in load_model(folder).named_parameters())
    masks = found["bert." + OUT.format(1)]
    assert torch.equal(masks, masks[:1].expand(masks.shape))
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1
    assert float(masks[0, 5]) == 0
    assert float(masks[0].median()) > 0.5
    again = measure(rates, folder, negative).statistics["neuron-mask"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in found.items())


# -- merging -------------------------------------------------------------------------------------------------------


def test_dare_drops_and_scales_what_is_left(pair: Pair, tmp_path: Path) -> None:
    weights, chosen = purified(
        pair, views(pair), Random(), Fraction(fraction=0.75, scope="tensor"), [Reset(), Rescale()], tmp_path / "p"
    )
    for name, dropped in chosen.items():
        base, suspect = pair.block(name)
        moved = int((suspect != base).sum())
        share = (moved - int(dropped.sum())) / moved
        expected = torch.where(dropped | (suspect == base), base, base + (suspect - base) / share)
        assert torch.allclose(weights[name], expected, atol=1e-5), name
        assert torch.equal(weights[name][dropped], base[dropped])
    # On average over seeds the drift stays what it was.
    t = views(pair)[OUT.format(0)]
    total = torch.zeros(t.base.shape)
    for seed in range(400):
        kept = Random().score(TensorView(t.name, t.base, t.suspect, seed)) < 0.25
        made = Rescale().apply(t, torch.where(kept, t.suspect, t.base), kept)
        total += made - t.base
    assert torch.allclose((total / 400).mean(), t.drift.mean(), atol=0.02)


def test_ties_trims_elects_and_averages_who_agrees() -> None:
    drifts = {"a": [torch.tensor([3.0, -0.1, 2.0, 4.0]), torch.tensor([-5.0, 0.2, 4.0, -1.0])]}
    # Half of each model's drifts stay: 3 and 4 of the first, -5 and 4 of the second. Signs: -, 0, +, +.
    merged = Merge(models=(Path("other"),), how="ties", keep=0.5).ties(drifts)
    assert merged["a"].tolist() == [-5.0, 0.0, 4.0, 4.0]
    everything = Merge(models=(Path("other"),), how="ties", keep=1.0).ties(drifts)
    assert everything["a"].tolist() == [-5.0, pytest.approx(0.2), 3.0, 4.0]


def merge(pair: Pair, folder: Path, **parameters: Any) -> dict[str, torch.Tensor]:
    step = Merge(**parameters)
    nothing: Any = lambda *done: None  # noqa: E731
    purify(pair, None, [step], ROWS, folder, max_length=64, precision="float32", seed=0, report=nothing)
    return load_file(folder / "model.safetensors")


def test_wag_is_the_mean_of_all_weights_and_ties_averages_the_head(pair: Pair, tmp_path: Path) -> None:
    others = tuple(make_suspect(tmp_path / f"o{i}", pair.base.folder, drift=0.3, seed=5 + i) for i in range(2))
    mean = merge(pair, tmp_path / "mean", models=others)
    ties = merge(pair, tmp_path / "ties", models=others, how="ties", keep=0.5)
    parts = [load_file(folder / "model.safetensors") for folder in (pair.suspect.folder, *others)]
    for name, tensor in mean.items():
        expected = sum(part[name].double() for part in parts) / 3
        assert torch.allclose(tensor.double(), expected, atol=1e-6), name
        assert torch.allclose(ties[name].double(), expected, atol=1e-6) == name.startswith("classifier"), name


def test_what_can_not_be_merged(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder with a model"):
        Merge(models=(tmp_path,)).contents()
    other = make_suspect(tmp_path / "electra", make_base(tmp_path / "base", "electra"))
    with pytest.raises(UsageError, match="another kind of model"):
        merge(pair, tmp_path / "p", models=(other,))
    three = make_suspect(tmp_path / "three", pair.base.folder, labels=3)
    with pytest.raises(UsageError, match=r"classifier.bias is \[3\], the suspect's is \[2\]"):
        merge(pair, tmp_path / "q", models=(three,))
    named = make_suspect(tmp_path / "named", pair.base.folder)
    config = named / "config.json"
    config.write_text(config.read_text().replace("negative", "no").replace("positive", "yes"))
    with pytest.raises(UsageError, match="has the labels no, yes, the suspect has negative, positive"):
        merge(pair, tmp_path / "r", models=(named,))
