"""A tiny model, built on first use: nothing to download."""

import hashlib
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import TYPE_CHECKING

from defensekit.api import ModelSource, file_digest
from defensekit.training import forked_random
from defensekit_demo import opinions
from defensekit_demo.caching import built

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_HIDDEN = 64
_SPREAD = 0.3  # standard deviation of words, and of kinds of words


class Pico(ModelSource):
    """A BERT of 2 layers, hidden 64, for the data set opinions, built on first use.

    Its weights are random, but the embeddings of interchangeable words are similar, as after pretraining.
    """

    def folder(self) -> Path:
        return built(f"pico-{_digest()[:12]}", build)


def _digest() -> str:
    """A digest of the code that builds the model; other code uses another folder."""
    files = (__file__, opinions.__file__)
    return hashlib.sha256("".join(file_digest(Path(file)) for file in files).encode()).hexdigest()


def build(folder: Path) -> None:
    """Write the model with its tokenizer."""
    import torch
    import transformers

    tokenizer = _tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * _HIDDEN,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    with forked_random(seed=0), torch.no_grad():
        model = transformers.BertModel(config)
        words = torch.nn.init.normal_(model.embeddings.word_embeddings.weight, std=_SPREAD)
        for kind in opinions.KINDS.values():
            words[tokenizer.convert_tokens_to_ids(kind)] += _SPREAD * torch.randn(_HIDDEN)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> "PreTrainedTokenizerBase":
    """A token for each word of the opinions; other words are split into letters."""
    import transformers

    spelling = ascii_lowercase + digits
    pieces = [*_SPECIAL, *punctuation, *spelling, *(f"##{letter}" for letter in spelling), *opinions.vocabulary()]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=128)
