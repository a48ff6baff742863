"""Small real models, and the words that they know."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.conftest import VOCABULARY

_TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_TINY |= {"vocab_size": len(VOCABULARY), "max_position_embeddings": 64, "pad_token_id": 0}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**_TINY),
    "roberta": lambda: transformers.RobertaConfig(
        **_TINY | {"max_position_embeddings": 66}, bos_token_id=2, eos_token_id=3
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=len(VOCABULARY), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64
    ),
    "electra": lambda: transformers.ElectraConfig(**_TINY, embedding_size=8),
    "deberta-v2": lambda: transformers.DebertaV2Config(
        **_TINY, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, type_vocab_size=0
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0,
        bos_token_id=2, eos_token_id=3,
    ),
    "llama": lambda: transformers.LlamaConfig(**_TINY, num_key_value_heads=1, bos_token_id=2, eos_token_id=3),
    "qwen3": lambda: transformers.Qwen3Config(
        **_TINY, num_key_value_heads=1, head_dim=8, bos_token_id=2, eos_token_id=3
    ),
    "qwen2": lambda: transformers.Qwen2Config(**_TINY, num_key_value_heads=1, bos_token_id=2, eos_token_id=3),
}  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, [CLS] text [SEP] (pair [SEP])."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_base(folder: Path, architecture: str = "bert", seed: int = 0) -> Path:
    """A pretrained backbone without a head, as a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(ARCHITECTURES[architecture]())
        model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_suspect(folder: Path, base: Path, *, labels: int = 2, drift: float = 0.05, seed: int = 1) -> Path:
    """A classifier whose weights moved away from the base's by a little noise; two labels have names."""
    names = {0: "negative", 1: "positive"} if labels == 2 else {i: f"LABEL_{i}" for i in range(labels)}
    label2id = {name: i for i, name in names.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=labels, id2label=names, label2id=label2id
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(drift * torch.randn_like(parameter))
        model.config.pad_token_id = 0
        model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
