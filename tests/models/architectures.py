"""Architectures of classifiers, small: those of every test, and others."""

from collections.abc import Callable
from typing import Any

import transformers

from tests.conftest import VOCABULARY
from tests.small_models import ARCHITECTURES

SIZE: dict[str, Any] = {"vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2}
SIZE |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
SIZE |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HALVES = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
HALVES |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("Albert", {"embedding_size": 8}),
    "bart": ("Bart", HALVES),
    "biogpt": ("BioGpt", {}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 2}),
    "camembert": ("Camembert", {"max_position_embeddings": 66}),
    "convbert": ("ConvBert", {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3, "num_groups": 1}),
    "deberta": ("Deberta", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}),
    "ernie": ("Ernie", {}),
    "falcon": ("Falcon", {"new_decoder_architecture": False}),
    "flaubert": ("Flaubert", {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "n_words": len(VOCABULARY), "pad_index": 0}),
    "fnet": ("FNet", {}),
    "gemma": ("Gemma", {"num_key_value_heads": 1, "head_dim": 8}),
    "gpt-neo": ("GPTNeo", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}),
    "gpt-neox": ("GPTNeoX", {}),
    "gptj": ("GPTJ", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 4}),
    "layoutlm": ("LayoutLM", {}),
    "mistral": ("Mistral", {"num_key_value_heads": 1, "sliding_window": 4}),
    "mixtral": ("Mixtral", {"num_key_value_heads": 1, "num_local_experts": 4}),
    "mobilebert": ("MobileBert", {"embedding_size": 8, "intra_bottleneck_size": 16, "true_hidden_size": 16}),
    "modernbert": ("ModernBert", {"local_attention": 4, "cls_token_id": 2, "sep_token_id": 3}),
    "mpnet": ("MPNet", {"max_position_embeddings": 66}),
    "opt": ("OPT", {"ffn_dim": 32, "word_embed_proj_dim": 16}),
    "phi": ("Phi", {}),
    "qwen3-moe": ("Qwen3Moe", {"num_key_value_heads": 1, "head_dim": 8, **SPARSE}),
    "roformer": ("RoFormer", {}),
    "squeezebert": ("SqueezeBert", {"embedding_size": 16, "q_groups": 1, "k_groups": 1, "v_groups": 1}),
    "stablelm": ("StableLm", {"num_key_value_heads": 2}),
    "t5": ("T5", T5),
    "xlm-roberta": ("XLMRoberta", {"max_position_embeddings": 66, "pad_token_id": 1}),
    "xlnet": ("XLNet", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "max_position_embeddings": None}),
}


def architectures() -> dict[str, Callable[[], Any]]:
    def config(kind: str, more: dict[str, Any]) -> Callable[[], Any]:
        given = {key: value for key, value in (SIZE | more).items() if value is not None}
        return lambda: getattr(transformers, f"{kind}Config")(**given)

    return ARCHITECTURES | {name: config(*what) for name, what in OTHERS.items()}
