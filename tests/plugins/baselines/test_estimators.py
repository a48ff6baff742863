"""Input norms, activations and token counts against the dumbest code in float64."""

from pathlib import Path

import pytest
import torch
import transformers

from defensekit.gradients import cross_entropy
from defensekit.models.loading import load_model
from defensekit_baselines.estimators.activation import Activation
from defensekit_baselines.estimators.input_norm import InputNorm
from defensekit_baselines.estimators.token_counts import TokenCounts
from tests.conftest import VOCABULARY
from tests.gradients.helpers import padded, rows
from tests.plugins.helpers import estimate
from tests.small_models import make_base, make_suspect, make_tokenizer


def by_hand(suspect: Path, lengths: list[int], layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's inputs and outputs, row by row, without any padding."""
    model, seen = load_model(suspect).double(), []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.append((i[0], o)))
    for row in rows(lengths):
        for sample in padded([row]):
            cross_entropy(model, sample)
    handle.remove()
    x, y = (torch.cat([pair[i].detach().flatten(0, -2) for pair in seen]) for i in (0, 1))
    return x, y


@pytest.mark.parametrize("layer", ["bert.encoder.layer.1.intermediate.dense", "classifier"])
def test_input_norm_and_activation_leave_padding_out(lively: Path, layer: str) -> None:
    lengths = [3, 12, 5]
    x, y = by_hand(lively, lengths, layer)
    norm = estimate(InputNorm(), lively, lengths).statistics["input-norm"][f"{layer}.weight"]
    expected = x.square().sum(0).sqrt().expand_as(norm).float()
    torch.testing.assert_close(norm, expected, rtol=1e-4, atol=1e-5)
    found = estimate(Activation(), lively, lengths).statistics["activation"]
    mean = y.abs().mean(0).float()
    torch.testing.assert_close(found[f"{layer}.bias"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[f"{layer}.weight"][:, 1], mean, rtol=1e-4, atol=1e-5)


def test_gpt2s_weights_stand_the_other_way_round(tmp_path: Path) -> None:
    suspect = make_suspect(tmp_path / "suspect", make_base(tmp_path / "base", "gpt2"), drift=0.3)
    name = "transformer.h.1.mlp.c_fc"
    x, y = by_hand(suspect, [3, 5], name)
    norm = estimate(InputNorm(), suspect, [3, 5]).statistics["input-norm"][f"{name}.weight"]
    assert norm.shape == (16, 64)
    torch.testing.assert_close(norm[:, 7], x.square().sum(0).sqrt().float(), rtol=1e-4, atol=1e-5)
    found = estimate(Activation(), suspect, [3, 5]).statistics["activation"][f"{name}.weight"]
    torch.testing.assert_close(found[3], y.abs().mean(0).float(), rtol=1e-4, atol=1e-5)


def test_token_counts_count_what_is_no_padding(lively: Path) -> None:
    lengths = [3, 12, 5]
    [(name, counts)] = estimate(TokenCounts(), lively, lengths).statistics["token-counts"].items()
    assert name == "bert.embeddings.word_embeddings.weight"
    tokenizer = make_tokenizer()
    expected = torch.zeros(len(counts))
    for row in rows(lengths):
        for token in tokenizer(row.text)["input_ids"]:
            expected[token] += 1
    assert expected[tokenizer.pad_token_id] == 0
    assert torch.equal(counts, expected[:, None].expand_as(counts))


@pytest.mark.parametrize("shared", [True, False])
def test_positions_that_every_batch_has_are_no_tokens(shared: bool, tmp_path: Path) -> None:
    """DeBERTa passes relative positions through linear layers, which may be those of the tokens."""
    made = transformers.DebertaV2Config(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=shared, position_buckets=8,
        max_relative_positions=16, max_position_embeddings=64,
    )  # fmt: skip
    transformers.AutoModel.from_config(made).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    suspect = make_suspect(tmp_path / "suspect", tmp_path / "base", drift=0.3)
    lengths = [3, 12, 5, 7, 4, 9]
    one, other = (estimate(InputNorm(batch_size=size), suspect, lengths).statistics["input-norm"] for size in (6, 1))
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["XLNet", "Longformer"])
def test_every_batch_counts_whatever_the_shape_of_its_tokens(kind: str, tmp_path: Path) -> None:
    """XLNet has tokens first, and Longformer pads to whole windows."""
    sizes = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
    made = {
        "XLNet": lambda: transformers.XLNetConfig(**sizes, d_model=16, n_layer=2, n_head=2, d_inner=32),
        "Longformer": lambda: transformers.LongformerConfig(
            **sizes, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            attention_window=8, max_position_embeddings=66,
        ),
    }[kind]()  # fmt: skip
    transformers.AutoModel.from_config(made).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    suspect = make_suspect(tmp_path / "suspect", tmp_path / "base", drift=0.3)

    def norms(lengths: list[int], size: int) -> dict[str, torch.Tensor]:
        found = estimate(InputNorm(batch_size=size), suspect, lengths).statistics["input-norm"]
        # The first layer's global query reads [CLS] alone, which is the same in every row.
        return {name: norm for name, norm in found.items() if ".layer." in name and "global" not in name and norm.any()}

    lengths = [3, 12, 5, 7, 4, 9]
    whole, half = norms(lengths, 1), norms(lengths[:3], 1)
    assert whole
    assert [name for name in whole if not (whole[name] > half[name]).any()] == []
    if kind == "XLNet":  # nothing is padded further
        for name, norm in norms(lengths, 6).items():
            torch.testing.assert_close(norm, whole[name], rtol=1e-3, atol=1e-4, msg=name)
