"""Which kind of tensor drifted."""

import re
from pathlib import Path

import pytest
import transformers

from defensekit.scanner.drift import kind_of
from tests.small_models import ARCHITECTURES


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
        ("transformer.encoder.block.0.layer.0.SelfAttention.q.weight", "attention q"),
        ("decoder.block.0.layer.1.EncDecAttention.o.weight", "attention o"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "bias"),
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", "feed-forward"),
        ("encoder.layer.0.attention.attn.v.weight", "attention v"),
        ("encoder.layer.0.attention.attn.o.weight", "attention o"),
        ("encoder.relative_attention_bias.weight", "bias"),
        ("transformer.layer.0.rel_attn.q", "attention q"),
        ("transformer.layer.0.rel_attn.r", "attention k"),
        ("transformer.layer.0.rel_attn.o", "attention o"),
        ("transformer.layer.0.rel_attn.r_w_bias", "bias"),
        ("transformer.layer.0.ff.layer_2.weight", "feed-forward"),
        ("transformer.mask_emb", "embedding"),
        ("sequence_summary.summary.weight", "head"),
        ("logits_proj.weight", "head"),
        ("model.layers.0.attn.Wo.weight", "attention o"),
        ("model.layers.0.mlp.Wo.weight", "feed-forward"),
        ("head.dense.weight", "head"),
        ("model.layers.0.self_attn.dense.weight", "attention o"),
        ("classification_head.dense.weight", "head"),
        ("classification_head.out_proj.weight", "head"),
        ("model.encoder.layernorm_embedding.weight", "norm"),
        ("model.encoder.layers.0.self_attn.out_proj.weight", "attention o"),
        ("encoder.layer.0.attention.self.in_proj.weight", "attention q, k, v"),
        ("encoder.layer.0.attention.self.pos_q_proj.weight", "attention q"),
        ("encoder.blocks.0.0.attention.post_proj.weight", "attention o"),
        ("transformer.layer_norm1.0.weight", "norm"),
    ],
)
def test_kinds_of_tensor(name: str, kind: str) -> None:
    assert kind_of(name, 1 if re.search(r"[nN]orm|ln_|bias$", name) else 2) == kind


def test_every_tensor_of_every_architecture_has_a_kind(tmp_path: Path) -> None:
    for architecture, config in ARCHITECTURES.items():
        model = transformers.AutoModel.from_config(config())
        kinds = {kind_of(name, value.dim()) for name, value in model.named_parameters()}
        assert {"embedding", "norm", "feed-forward"} <= kinds, architecture
        assert any(kind.startswith("attention") for kind in kinds), architecture
