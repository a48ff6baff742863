"""Which kind of tensor drifted."""

from pathlib import Path

import pytest
import transformers

from defensekit.scanner.drift import kind_of
from tests.conftest import ARCHITECTURES


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("embeddings.word_embeddings.weight", "embedding"),
        ("model.embed_tokens.weight", "embedding"),
        ("wte.weight", "embedding"),
        ("encoder.layer.0.attention.self.query.weight", "attention q"),
        ("model.layers.0.self_attn.k_proj.weight", "attention k"),
        ("transformer.layer.0.attention.v_lin.weight", "attention v"),
        ("encoder.layer.0.attention.output.dense.weight", "attention o"),
        ("h.0.attn.c_proj.weight", "attention o"),
        ("h.0.attn.c_attn.weight", "attention q, k, v"),
        ("h.0.mlp.c_proj.weight", "feed-forward"),
        ("encoder.layer.0.output.dense.weight", "feed-forward"),
        ("model.layers.0.mlp.gate_proj.weight", "feed-forward"),
        ("encoder.layer.0.output.LayerNorm.weight", "norm"),
        ("model.layers.0.input_layernorm.weight", "norm"),
        ("h.0.ln_1.weight", "norm"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("encoder.layer.0.output.LayerNorm.bias", "bias"),
        ("lm_head.weight", "head"),
        ("pooler.dense.weight", "pooler"),
    ],
)
def test_kinds_of_tensor(name: str, kind: str) -> None:
    assert kind_of(name, 1 if "orm" in name or "ln_" in name or "bias" in name else 2) == kind


def test_every_tensor_of_every_architecture_has_a_kind(tmp_path: Path) -> None:
    for architecture, config in ARCHITECTURES.items():
        model = transformers.AutoModel.from_config(config())
        kinds = {kind_of(name, value.dim()) for name, value in model.named_parameters()}
        assert {"embedding", "norm", "feed-forward"} <= kinds, architecture
        assert any(kind.startswith("attention") for kind in kinds), architecture
