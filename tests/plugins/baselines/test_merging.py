"""Merging: DARE, TIES and WAG do what their papers say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from defensekit.components.tensors import TensorView
from defensekit.defense.purification import purify
from defensekit.models.pair import Pair
from defensekit.utils.errors import UsageError
from defensekit_baselines.merging import Merge, Rescale
from defensekit_baselines.scorers import Random
from defensekit_finepurifying.purifiers import Reset
from defensekit_finepurifying.selectors import Fraction
from tests.plugins.baselines.helpers import OUT, ROWS, purified, views
from tests.small_models import make_base, make_suspect


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
    with pytest.raises(UsageError, match="is not a model folder"):
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
