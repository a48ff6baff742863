"""ANP masks the neuron that does harm."""

from pathlib import Path

import torch

from defensekit.models.loading import load_model
from defensekit.models.pair import Pair
from defensekit.text import Row
from defensekit_baselines.estimators.neuron_masks import AdversarialNeuronPruning
from tests.plugins.baselines.helpers import OUT, ROWS, measure
from tests.small_models import make_base, make_suspect


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
